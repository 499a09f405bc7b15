//! Kernel command lines in the configuration of boot loaders: PXELINUX
//! (`pxelinux.cfg/*`), iPXE scripts and GRUB.

/// A kernel command line, as somebody will boot it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootLine {
    /// Line of the file that it begins at, from 1.
    pub(crate) line: usize,
    /// The parameters, separated by white space.
    pub(crate) parameters: String,
}

/// What the file is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loader {
    Pxelinux,
    Ipxe,
    Grub,
}

/// The command lines; [`None`] when it is no configuration of a boot loader.
pub(crate) fn parse(text: &str) -> Option<Vec<BootLine>> {
    let loader = loader(text)?;
    let mut found = Vec::new();
    for (line, whole) in logical_lines(text) {
        let mut words = whole.split_whitespace();
        let Some(first) = words.next() else { continue };
        let keyword = first.to_ascii_lowercase();
        let skipped = match (loader, keyword.as_str()) {
            (Loader::Pxelinux, "append") => 0,
            // The name of the image comes first.
            (Loader::Ipxe, "kernel" | "imgargs" | "imgexec" | "boot" | "chain")
            | (Loader::Grub, "linux" | "linuxefi" | "linux16") => 1,
            _ => continue,
        };
        // iPXE: options before the name of the image.
        let mut rest: Vec<&str> = words.collect();
        if loader == Loader::Ipxe {
            while rest.first().is_some_and(|word| word.starts_with("--")) {
                let takes_value = rest
                    .first()
                    .is_some_and(|word| matches!(*word, "--name" | "--timeout"));
                rest.drain(..rest.len().min(1 + usize::from(takes_value)));
            }
        }
        // What the loader puts in, nobody knows here.
        let parameters: Vec<_> = rest
            .into_iter()
            .skip(skipped)
            .filter(|word| loader == Loader::Pxelinux || !word.contains('$'))
            .collect();
        found.push(BootLine {
            line,
            parameters: parameters.join(" "),
        });
    }
    Some(found)
}

fn loader(text: &str) -> Option<Loader> {
    if text.starts_with("#!ipxe") {
        return Some(Loader::Ipxe);
    }
    let has = |words: &[&str]| {
        text.lines().any(|line| {
            let first = line.split_whitespace().next().unwrap_or_default();
            words.iter().any(|word| first.eq_ignore_ascii_case(word))
        })
    };
    if has(&["menuentry"]) {
        Some(Loader::Grub)
    } else if has(&["label", "append", "kernel"]) {
        Some(Loader::Pxelinux)
    } else {
        None
    }
}

/// Lines with the number of the first; a backslash at the end goes on with the
/// next. Comments are left out.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (i, line) in text.lines().enumerate() {
        let (line, continued) = match line.strip_suffix('\\') {
            Some(line) => (line, true),
            None => (line, false),
        };
        match lines.last_mut() {
            Some((_, last)) if goes_on => {
                last.push(' ');
                last.push_str(line);
            }
            _ => lines.push((i + 1, line.to_owned())),
        }
        goes_on = continued;
    }
    lines.retain(|(_, line)| !line.trim_start().starts_with('#'));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(usize, String)> {
        let lines = parse(text).unwrap();
        lines.into_iter().map(|l| (l.line, l.parameters)).collect()
    }

    #[test]
    fn pxelinux() {
        let text = "default buildos\n# append x\n\nLABEL buildos\n  kernel /buildos/buildos-image\n  APPEND initrd=/buildos/buildos-initrd buildos.hostname=b1\n";
        assert_eq!(
            parsed(text),
            [(
                6,
                "initrd=/buildos/buildos-initrd buildos.hostname=b1".into()
            )]
        );
    }

    #[test]
    fn ipxe() {
        let text = "#!ipxe\nkernel --name k http://boot.example/${arch}/image \\\n  a=1 BOOTIF=01-${mac:hexhyp} b=2\ninitrd http://boot.example/initrd\nimgargs k c=3\nboot\n";
        assert_eq!(
            parsed(text),
            [
                (2, "a=1 b=2".to_owned()),
                (5, "c=3".to_owned()),
                (6, String::new())
            ]
        );
    }

    #[test]
    fn grub() {
        let text = "menuentry \"buildos\" {\n\tlinux /buildos-image quiet a=$b c=d\n\tinitrd /buildos-initrd\n}\n";
        assert_eq!(parsed(text), [(2, "quiet c=d".into())]);
    }

    #[test]
    fn something_else() {
        assert_eq!(parse("private = \"10.0.0.1/8\"\n"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn nothing_makes_it_panic() {
        let mut text =
            String::from("#!ipxe\nkernel --name\nkernel --timeout 1\nkernel\nimgargs\n\\\n\\");
        while text.pop().is_some() {
            let _ = parse(&text);
        }
    }
}
