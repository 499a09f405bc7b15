//! Finds kernel command lines in the configuration of PXELINUX (`pxelinux.cfg/*`), iPXE
//! and GRUB.

/// A kernel command line in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootLine {
    /// Number of its first line in the file, from 1.
    pub(crate) line: usize,
    /// The parameters, separated by white space.
    pub(crate) parameters: String,
    /// Reason why the boot loader passes a different line.
    pub(crate) problem: Option<String>,
}

/// The boot loader that reads a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loader {
    Pxelinux,
    Ipxe,
    Grub,
}

/// Returns the command lines of a file, or [`None`] if no known boot loader reads it.
pub(crate) fn parse(text: &str) -> Option<Vec<BootLine>> {
    let loader = loader(text)?;
    let mut found = Vec::new();
    for (line, whole) in logical_lines(text) {
        let mut problem = None;
        let split: Vec<String> = match loader {
            Loader::Grub => grub_words(&whole, &mut problem),
            // Neither knows quotes: PXELINUX passes the rest of the line, iPXE the words.
            Loader::Pxelinux | Loader::Ipxe => {
                whole.split_whitespace().map(str::to_owned).collect()
            }
        };
        let mut words = split.iter().map(String::as_str);
        let Some(first) = words.next() else { continue };
        let keyword = first.to_ascii_lowercase();
        let skipped = match (loader, keyword.as_str()) {
            (Loader::Pxelinux, "append") => 0,
            // The first operand is the image.
            (Loader::Ipxe, "kernel" | "imgargs" | "imgexec" | "boot" | "chain")
            | (Loader::Grub, "linux" | "linuxefi" | "linux16") => 1,
            _ => continue,
        };
        // iPXE takes options before the image.
        let mut rest: Vec<&str> = words.collect();
        if loader == Loader::Ipxe {
            while rest.first().is_some_and(|word| word.starts_with("--")) {
                let takes_value = rest
                    .first()
                    .is_some_and(|word| matches!(*word, "--name" | "--timeout"));
                rest.drain(..rest.len().min(1 + usize::from(takes_value)));
            }
        }
        // The boot loader replaces variables at boot; their values are not known here.
        let parameters: Vec<_> = rest
            .into_iter()
            .skip(skipped)
            .filter(|word| loader == Loader::Pxelinux || !word.contains('$'))
            .collect();
        found.push(BootLine {
            line,
            parameters: parameters.join(" "),
            problem,
        });
    }
    Some(found)
}

/// Splits a line of GRUB into words without their quotes (GRUB manual, "Quoting"), each in
/// the form in which GRUB passes it to the kernel.
fn grub_words(line: &str, problem: &mut Option<String>) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some('"'), '\\') if characters.peek().is_some_and(|c| "$\"\\".contains(*c)) => {
                word.get_or_insert_default().extend(characters.next());
            }
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '\\') => word.get_or_insert_default().extend(characters.next()),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '&' | ';' | '|' | '<' | '>') => {
                problem.get_or_insert_with(|| {
                    let effect = match c {
                        ';' => "ends the command at",
                        _ => "does not boot with a syntax error at",
                    };
                    format!("GRUB {effect} {c}: put the parameter in single quotes")
                });
                word.get_or_insert_default().push(c);
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    for word in &mut words {
        if word.contains(['\'', '"', '\\']) {
            problem.get_or_insert_with(|| {
                format!("GRUB passes {word} with a backslash before each quote and backslash")
            });
        }
        if word.contains(' ') {
            *word = format!("\"{word}\"");
        }
    }
    words
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

/// Returns lines without comments, each with its number. A backslash at the end of a
/// line joins it with the next.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut continues = false;
    for (i, line) in text.lines().enumerate() {
        let (line, backslash) = match line.strip_suffix('\\') {
            Some(line) => (line, true),
            None => (line, false),
        };
        match lines.last_mut() {
            Some((_, last)) if continues => {
                last.push(' ');
                last.push_str(line);
            }
            _ => lines.push((i + 1, line.to_owned())),
        }
        continues = backslash;
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
    fn pxelinux_append_is_a_command_line() {
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
    fn ipxe_options_and_variables_are_left_out() {
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
    fn grub_linux_is_a_command_line() {
        let text = "menuentry \"buildos\" {\n\tlinux /buildos-image quiet a=$b c=d\n\tinitrd /buildos-initrd\n}\n";
        assert_eq!(parsed(text), [(2, "quiet c=d".into())]);
    }

    #[test]
    fn query_string_is_passed_unchanged_by_every_boot_loader() {
        let parameter = "a.controllers=https://x/?b=1,2&c=%2C";
        for text in [
            format!("label x\nappend {parameter} e=f\n"),
            format!("#!ipxe\nkernel image {parameter} e=f\n"),
            format!("menuentry x {{\n linux /image '{parameter}' e=f\n}}\n"),
            format!("menuentry x {{\n linux /image \"{parameter}\" e=f\n}}\n"),
            format!(
                "menuentry x {{\n linux /image {} e=f\n}}\n",
                parameter.replace('&', "\\&")
            ),
        ] {
            let lines = parse(&text).unwrap();
            assert_eq!(lines[0].parameters, format!("{parameter} e=f"), "{text}");
            assert_eq!(lines[0].problem, None, "{text}");
        }
    }

    #[test]
    fn unquoted_character_of_grub_is_reported() {
        let problem = |word: &str| {
            let text = format!("menuentry x {{\n linux /image {word}\n}}\n");
            parse(&text).unwrap().remove(0).problem.unwrap_or_default()
        };
        assert_eq!(
            problem("a=https://x/?b=1&c=2"),
            "GRUB does not boot with a syntax error at &: put the parameter in single quotes"
        );
        assert_eq!(
            problem("a=b;c"),
            "GRUB ends the command at ;: put the parameter in single quotes"
        );
        assert!(problem("\"a=['x']\"").contains("with a backslash before each quote"));
        assert_eq!(problem("'a=b c'"), "");
    }

    #[test]
    fn file_of_no_boot_loader_is_refused() {
        assert_eq!(parse("private = \"10.0.0.1/8\"\n"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn truncated_scripts_do_not_panic() {
        let mut text =
            String::from("#!ipxe\nkernel --name\nkernel --timeout 1\nkernel\nimgargs\n\\\n\\");
        while text.pop().is_some() {
            let _ = parse(&text);
        }
    }
}
