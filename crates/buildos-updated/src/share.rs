//! Keeps pieces for other hosts while the volume has room for them.
//!
//! The link `/run/buildos/updated/pieces` to the objects of the spool exists while pieces are
//! shared: without it, the units buildos-pieces neither answer nor serve.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;

use buildos_channel::pieces::PieceList;
use buildos_channel::{Channel, Digest};
use buildos_service::file::read_bounded;

use crate::paths::Paths;
use crate::settings::Settings;
use crate::spool::Spool;

/// Pieces stay while this part of the volume is free, in percent. Tasks get the room first:
/// below 5 %, buildos-agentd drains agents, and the next run can be an hour away.
const FREE_PERCENT: u64 = 25;

/// Removes the link if nothing is shared.
///
/// # Errors
///
/// The link cannot be removed.
pub fn withdraw(paths: &Paths, settings: &Settings) -> Result<(), String> {
    match settings.share {
        true => Ok(()),
        false => unlink(paths),
    }
}

fn unlink(paths: &Paths) -> Result<(), String> {
    let link = paths.pieces();
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", link.display()))
        }
        _ => Ok(()),
    }
}

/// Shares the objects of the spool, or not. Returns the pieces of the channel that are there.
///
/// # Errors
///
/// The link cannot be made, or the spool cannot be changed.
pub fn begin(
    paths: &Paths,
    settings: &Settings,
    spool: &Spool,
    channel: &Channel,
) -> Result<BTreeSet<Digest>, String> {
    unlink(paths)?;
    if !settings.share {
        return Ok(BTreeSet::new());
    }
    let link = paths.pieces();
    symlink(spool.objects(), &link)
        .map_err(|error| format!("cannot make {}: {error}", link.display()))?;
    Ok(of_channel(spool, channel))
}

/// Removes pieces that do not stay for other hosts.
///
/// # Errors
///
/// The spool cannot be read or changed.
pub fn end(settings: &Settings, spool: &Spool, channel: &Channel) -> Result<(), String> {
    let room = spool.room()?;
    let stay = match settings.share && room.free >= room.size / 100 * FREE_PERCENT {
        true => of_channel(spool, channel),
        false => BTreeSet::new(),
    };
    spool.keep_only(&stay)
}

/// Makes room for `need` bytes. Objects of `needed` stay, and those of `shared` if there is room.
///
/// # Errors
///
/// There is too little room.
pub fn make_room(
    spool: &Spool,
    need: u64,
    needed: &BTreeSet<Digest>,
    shared: &BTreeSet<Digest>,
) -> Result<(), String> {
    spool.keep_only(&needed.union(shared).copied().collect())?;
    if spool.room()?.check(need).is_ok() {
        return Ok(());
    }
    spool.keep_only(needed)?;
    spool.room()?.check(need).map_err(|error| error.to_string())
}

/// Returns the lists and pieces of the channel's machines whose lists the spool has.
fn of_channel(spool: &Spool, channel: &Channel) -> BTreeSet<Digest> {
    let machines = channel.machines.iter();
    let streams = machines.flat_map(|machine| {
        let increments = machine.increments.iter();
        let increments = increments.map(|increment| increment.stream);
        increments.chain([machine.whole])
    });
    let mut found = BTreeSet::new();
    for stream in streams {
        let limit = PieceList::text_size(stream.size);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let text = read_bounded(&spool.object(&stream.pieces), limit);
        let Some(list) = text
            .ok()
            .and_then(|text| PieceList::parse(&text, stream.size).ok())
        else {
            continue;
        };
        found.insert(stream.pieces);
        found.extend(list.iter().map(|(_, sha256, _)| sha256));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::grammar;

    #[test]
    fn pieces_of_the_channel_stay_while_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        let spool = Spool::new(&directory.path().join("spool"));
        fs::create_dir_all(spool.objects()).unwrap();
        fs::create_dir_all(paths.pieces().parent().unwrap()).unwrap();
        spool.prepare().unwrap();
        let (piece, other) = (Digest::of(b"piece"), Digest::of(b"other"));
        let list = format!("{piece}\n");
        let list_digest = Digest::of(list.as_bytes());
        let channel = grammar::parse(&format!(
            "format = 1\nname = \"stable\"\nserial = 1\nvalid_until = 2027-01-31T12:00:00Z\n\
             [[machine]]\nname = \"box\"\nrevision = 1\nid = \"{other}\"\nsize = 5\n\
             whole = {{ size = 5, pieces = \"{list_digest}\" }}\n"
        ))
        .unwrap()
        .channel;
        let fill = || {
            fs::write(spool.object(&list_digest), &list).unwrap();
            fs::write(spool.object(&piece), "piece").unwrap();
            fs::write(spool.object(&other), "other").unwrap();
        };
        let count = || fs::read_dir(spool.objects()).unwrap().count();
        let mut settings = Settings::default();
        fill();
        let shared = begin(&paths, &settings, &spool, &channel).unwrap();
        assert_eq!(shared, BTreeSet::from([list_digest, piece]));
        assert_eq!(fs::read_link(paths.pieces()).unwrap(), spool.objects());
        // Again, as each run does.
        begin(&paths, &settings, &spool, &channel).unwrap();

        make_room(&spool, 0, &BTreeSet::new(), &shared).unwrap();
        assert_eq!(count(), 2);
        assert!(make_room(&spool, u64::MAX, &BTreeSet::from([other]), &shared).is_err());
        assert_eq!(count(), 0);

        fill();
        settings.share = false;
        assert_eq!(
            begin(&paths, &settings, &spool, &channel),
            Ok(BTreeSet::new())
        );
        assert!(!paths.pieces().is_symlink());
        end(&settings, &spool, &channel).unwrap();
        assert_eq!(count(), 0);
    }
}
