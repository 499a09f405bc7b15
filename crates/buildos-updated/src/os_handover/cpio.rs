//! Writes archives as the kernel unpacks them from an initrd: cpio(5), format newc.
//!
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst of Linux. An initrd is a
//! sequence of archives, of which each begins at a multiple of 4 bytes.

use std::io::{self, Read, Write};

/// Entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// A directory that only root can enter.
const DIRECTORY: u32 = 0o040_700;
/// A file that only root can read.
const FILE: u32 = 0o100_600;

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// Bytes written.
    length: u64,
    /// Entries written; also the inode number of the next.
    entries: u32,
}

impl<W: Write> Writer<W> {
    /// Begins an archive after `length` bytes.
    ///
    /// # Errors
    ///
    /// As those of `out`.
    pub fn after(out: W, length: u64) -> io::Result<Self> {
        let mut writer = Self {
            out,
            length,
            entries: 1,
        };
        writer.pad()?;
        Ok(writer)
    }

    /// Adds a directory.
    ///
    /// # Errors
    ///
    /// As those of `out`.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.header(name, DIRECTORY, 0)
    }

    /// Adds a file with `size` bytes from `content`.
    ///
    /// # Errors
    ///
    /// As those of `out` and `content`; `content` has fewer bytes.
    pub fn file(&mut self, name: &str, size: u32, content: impl Read) -> io::Result<()> {
        self.header(name, FILE, size)?;
        let copied = io::copy(&mut content.take(u64::from(size)), &mut self.out)?;
        self.length += copied;
        if copied != u64::from(size) {
            let text = format!("{copied} bytes instead of {size}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.pad()
    }

    /// Ends the archive.
    ///
    /// # Errors
    ///
    /// As those of `out`.
    pub fn finish(mut self) -> io::Result<()> {
        self.header(TRAILER, 0, 0)?;
        self.out.flush()
    }

    fn header(&mut self, name: &str, mode: u32, size: u32) -> io::Result<()> {
        let inode = self.entries;
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let name_size = u32::try_from(name.len() + 1)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "name too long"))?;
        // Magic; inode, mode, owner, group, links, time, size, device, node, length of the
        // name, checksum.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08x}");
        }
        header += name;
        header.push('\0');
        self.write(header.as_bytes())?;
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        let rest = self.length.wrapping_neg() % 4;
        for _ in 0..rest {
            self.write(&[0])?;
        }
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.out.write_all(data)?;
        self.length += data.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(before: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::after(&mut out, before).unwrap();
        writer.directory("buildos-previous").unwrap();
        writer
            .file("buildos-previous/a", 5, &b"hello, more"[..])
            .unwrap();
        writer.file("buildos-previous/empty", 0, &b""[..]).unwrap();
        writer.finish().unwrap();
        out
    }

    #[test]
    fn archive_begins_at_a_multiple_of_four() {
        let plain = archive(0);
        assert_eq!(plain.len() % 4, 0);
        assert_eq!(archive(8), plain);
        assert_eq!(archive(5), [&[0, 0, 0], plain.as_slice()].concat());
        assert!(plain.starts_with(b"07070100000001000041c000000000"));
    }

    #[test]
    fn missing_content_is_an_error() {
        let mut writer = Writer::after(io::sink(), 0).unwrap();
        let error = writer.file("a", 5, &b"four"[..]).unwrap_err();
        assert_eq!(error.to_string(), "4 bytes instead of 5");
    }

    /// `cpio --list --verbose` of GNU cpio 2.13 read this text, and unpacked it.
    #[test]
    fn archive_has_headers_in_the_order_of_the_format() {
        let mut out = Vec::new();
        let mut writer = Writer::after(&mut out, 0).unwrap();
        writer.directory("d").unwrap();
        writer.file("d/a", 5, &b"hello, more"[..]).unwrap();
        writer.finish().unwrap();
        let zero = "00000000";
        let expected = [
            // Magic, inode, mode, owner and group, links, time, size.
            "07070100000001000041c0",
            zero,
            zero,
            "00000002",
            zero,
            zero,
            // Device, device of a node, length of the name, checksum.
            zero,
            zero,
            zero,
            zero,
            "00000002",
            zero,
            "d\0",
            "0707010000000200008180",
            zero,
            zero,
            "00000001",
            zero,
            "00000005",
            zero,
            zero,
            zero,
            zero,
            "00000004",
            zero,
            "d/a\0\0\0",
            "hello\0\0\0",
            "0707010000000300000000",
            zero,
            zero,
            "00000001",
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            "0000000b",
            zero,
            "TRAILER!!!\0\0\0\0",
        ];
        assert_eq!(String::from_utf8(out).unwrap(), expected.concat());
    }
}
