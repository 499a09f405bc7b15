//! Compares the generated files with the table of commands.

use super::commands::{COMMANDS, GLOBAL, Id};
use super::{complete, help, synopsis};
use crate::generated::compare;

const MANUAL: &str = include_str!("../../../../docs/man/buildosctl.1");

#[test]
fn generated_bash_completion_is_current() {
    compare(
        "crates/buildosctl/completion/bash/buildosctl",
        &complete::bash(),
    );
}

#[test]
fn generated_zsh_completion_is_current() {
    compare(
        "crates/buildosctl/completion/zsh/_buildosctl",
        &complete::zsh(),
    );
}

#[test]
fn generated_synopsis_of_man_page_is_current() {
    let (before, rest) = MANUAL.split_once(".Sh SYNOPSIS\n").unwrap();
    let (_, after) = rest.split_once(".Sh DESCRIPTION\n").unwrap();
    let page = format!("{before}{}.Sh DESCRIPTION\n{after}", synopsis::mdoc());
    compare("docs/man/buildosctl.1", &page);
}

#[test]
fn man_page_describes_every_command_and_flag() {
    let (_, description) = MANUAL.split_once(".Sh DESCRIPTION\n").unwrap();
    for command in &COMMANDS {
        let item = format!(".It Cm {}\n", command.name);
        assert!(description.contains(&item), "{item}");
        for flag in command.flags() {
            let item = format!(".It Fl -{}", flag.long());
            assert!(description.contains(&item), "{item}");
        }
    }
}

#[test]
fn help_fits_a_terminal_of_80_columns() {
    let each = COMMANDS.iter().map(help::of);
    for text in each.chain([help::all()]) {
        for line in text.lines() {
            assert!(line.len() <= 80, "{line}");
        }
    }
}

#[test]
fn help_names_every_command_and_flag() {
    let all = help::all();
    for command in &COMMANDS {
        assert!(all.contains(&format!("\n  {} ", command.name)));
        let own = help::of(command);
        assert!(own.starts_with("Usage: buildosctl "), "{own}");
        for flag in command.flags().into_iter().chain(GLOBAL) {
            assert!(all.contains(&format!("--{}", flag.long())));
        }
        for flag in command.flags() {
            assert!(own.contains(&format!("--{}", flag.long())), "{own}");
        }
    }
}

#[test]
fn completions_name_every_command_and_flag() {
    for completion in [complete::bash(), complete::zsh()] {
        for command in &COMMANDS {
            assert!(completion.contains(command.name), "{}", command.name);
            for flag in command.flags().into_iter().chain(GLOBAL) {
                assert!(
                    command.id == Id::Log || completion.contains(&format!("--{}", flag.long())),
                    "{flag:?}"
                );
            }
        }
    }
}
