//! Fetches the two pairs of an update into the spool.

use std::collections::BTreeSet;

use buildos_channel::Digest;
use buildos_channel::model::Os;
use buildos_dbus_api::update1::Cause;

use super::lifecycle::Event;
use super::memory::{self, Memory};
use super::pair::Pair;
use super::{INTERRUPTED, Update};
use crate::durable;
use crate::settings::Method;

impl Update<'_, '_> {
    /// Returns the RAM that both pairs need.
    pub(super) fn memory(&self, os: &Os) -> Memory {
        let size = |digest| self.spool.arrived(digest);
        let new = os.image.size.saturating_add(os.initrd.size);
        let there = size(&os.image.sha256).saturating_add(size(&os.initrd.sha256));
        let running = self.running.as_ref().map_or(0, |running| {
            size(&running.image).saturating_add(size(&running.initrd))
        });
        let in_spool = match memory::is_in_ram(&self.run.paths.os_spool()) {
            true => there.saturating_add(running),
            false => 0,
        };
        Memory {
            available: memory::available(self.run.paths.root()),
            new,
            new_initrd: os.initrd.size,
            // Its size is not known before it is fetched.
            running: running.max(new),
            in_spool,
        }
    }

    /// Fetches both pairs.
    pub(super) fn fetch(&mut self) -> Event {
        // The helper verifies it for each method.
        let channel = self.spool.create();
        let channel =
            channel.and_then(|()| durable::replace(&self.spool.channel(), &self.run.offer.file));
        if let Err(reason) = channel {
            return self.failed(reason);
        }
        if self.method == Method::Reboot {
            return Event::Arrived;
        }
        // First the pair that runs: without it the new one is of no use.
        let running = self.make_room().map(|()| match &self.running {
            Ok(running) => self.fetch_running(*running),
            Err(reason) => Err(reason.clone()),
        });
        let is_held = self.run.progress.is_held();
        match running {
            _ if is_held => return self.held(Cause::Operator, INTERRUPTED),
            Err(reason) => return self.failed(reason),
            Ok(Err(reason)) => {
                let reason = format!("the pair that runs is not at hand: {reason}");
                return self.held(Cause::NoWayBack, reason);
            }
            Ok(Ok(())) => {}
        }
        match self.fetch_new() {
            _ if self.run.progress.is_held() => self.held(Cause::Operator, INTERRUPTED),
            Err(reason) => self.failed(reason),
            Ok(()) => Event::Arrived,
        }
    }

    /// Returns the objects of both pairs.
    pub(super) fn needed(&self) -> BTreeSet<Digest> {
        let os = self.os();
        let new = os
            .into_iter()
            .flat_map(|os| [os.image.sha256, os.initrd.sha256]);
        let running = self.running.iter();
        let running = running.flat_map(|running| [running.image, running.initrd]);
        new.chain(running).collect()
    }

    fn make_room(&self) -> Result<(), String> {
        let needed = self.needed();
        self.spool.keep_only(&needed)?;
        let os = self.os();
        let new = os.map_or(0, |os| os.image.size.saturating_add(os.initrd.size));
        let there = needed.iter().map(|digest| self.spool.arrived(digest)).sum();
        // The pair that runs is about as large.
        let missing = new.saturating_mul(2).saturating_sub(there);
        let room = self.spool.room()?;
        room.check(missing).map_err(|error| error.to_string())
    }

    fn fetch_new(&self) -> Result<(), String> {
        let objects = self.os().map(|os| [os.image, os.initrd]);
        let (source, settings) = (self.run.source, self.run.settings);
        for object in objects.into_iter().flatten() {
            self.spool
                .fetch(&object.sha256, object.size, source, settings)?;
        }
        Ok(())
    }

    fn fetch_running(&self, running: Pair) -> Result<(), String> {
        let (source, settings) = (self.run.source, self.run.settings);
        for digest in [running.image, running.initrd] {
            // Its size is not known, and its digest only at the end.
            let most = match memory::is_in_ram(&self.run.paths.os_spool()) {
                true => memory::available(self.run.paths.root()).saturating_sub(memory::RESERVE),
                false => u64::MAX,
            };
            let most = most.min(memory::LARGEST_PAIR);
            self.spool.fetch_up_to(&digest, most, source, settings)?;
        }
        Ok(())
    }
}
