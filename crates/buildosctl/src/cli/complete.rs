//! Generates the completions of bash and zsh.

use super::commands::{COMMANDS, Command, DEFAULT, Flag, GLOBAL, Operands, Value};
use crate::commands::check;

/// Groups the commands that complete in the same way, in the order of the table.
fn groups() -> Vec<Vec<&'static Command>> {
    let mut groups: Vec<Vec<&Command>> = Vec::new();
    for command in &COMMANDS {
        let like = |group: &&mut Vec<&Command>| {
            let first = group.first();
            first.is_some_and(|first| first.forms == command.forms)
        };
        match groups.iter_mut().find(like) {
            Some(group) => group.push(command),
            None => groups.push(vec![command]),
        }
    }
    groups
}

fn names(commands: &[&Command], separator: &str) -> String {
    let names: Vec<_> = commands.iter().map(|command| command.name).collect();
    names.join(separator)
}

fn long(flags: &[Flag]) -> String {
    let flags: Vec<_> = flags
        .iter()
        .map(|flag| format!("--{}", flag.long()))
        .collect();
    flags.join(" ")
}

fn daemons() -> String {
    check::daemon_names().join(" ")
}

/// Flags of journalctl(1) that are useful here; it has many more.
const JOURNALCTL: &str = "--follow --lines --catalog --priority --since";

const BASH_HEAD: &str = r#"# bash completion of buildosctl(1)
# Made by docs/generate-buildosctl from crates/buildosctl/src/cli/commands.rs.

_buildosctl_agents()
{
    buildosctl agents 2>/dev/null | sed -n 's/^\(b[a-z]*@[^ ]*\) .*/\1/p'
}

_buildosctl_machines()
{
    buildosctl machines 2>/dev/null | sed -n 's/^\([^ -][^ ]*\) *br[^ ]* .*/\1/p'
}

_buildosctl()
{
    # COMP_WORDS splits at @ and =, which are in COMP_WORDBREAKS.
    local -a words
    read -ra words <<<"${COMP_LINE:0:COMP_POINT}"
    [[ ${COMP_LINE:0:COMP_POINT} != *[[:space:]] ]] || words+=("")
    local word=${words[-1]} before=${words[-2]} given command= choices= files=
    for given in "${words[@]:1:${#words[@]}-2}"; do
        [[ $given == -* ]] || { command=$given; break; }
    done
    if [[ $word == --*=* ]]; then
        before=${word%%=*}
        word=${word#*=}
    fi
    case $command in
"#;

const BASH_TAIL: &str = r#"    esac
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
    if [[ $files ]]; then
        COMPREPLY+=($(compgen -f -- "$word"))
        compopt -o filenames
    fi
    # readline replaces only the part of the word from @ on.
    if [[ $word == *@* && $COMP_WORDBREAKS == *@* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%@*}"}")
    fi
}

complete -F _buildosctl buildosctl
"#;

/// Returns the completion of bash.
pub(super) fn bash() -> String {
    let mut out = BASH_HEAD.to_owned();
    let all: Vec<&Command> = COMMANDS.iter().collect();
    out += &format!(
        "        '')\n            choices=\"{}\n                {} {}\" ;;\n",
        names(&all, " "),
        long(&DEFAULT.flags()),
        long(&GLOBAL)
    );
    for group in groups() {
        let Some(command) = group.first() else {
            continue;
        };
        out += &format!("        {})\n", names(&group, " | "));
        for flag in command.flags() {
            out += &match flag.value() {
                None => continue,
                Some(Value::Daemon) => format!(
                    "            [[ $before != --{} ]] || {{ COMPREPLY=($(compgen -W \"{}\" -- \"$word\")); return; }}\n",
                    flag.long(),
                    daemons()
                ),
                Some(Value::File | Value::Directory | Value::Device) => format!(
                    "            [[ $before != --{} ]] || {{ COMPREPLY=($(compgen -f -- \"$word\")); return; }}\n",
                    flag.long()
                ),
                Some(
                    Value::Seconds
                    | Value::Time
                    | Value::Text
                    | Value::Number
                    | Value::Name
                    | Value::Key
                    | Value::Identity,
                ) => {
                    format!("            [[ $before != --{} ]] || return\n", flag.long())
                }
            };
        }
        let mut flags = long(&[command.flags(), vec![Flag::Help]].concat());
        for verb in command.forms.iter().filter_map(|form| form.verb).rev() {
            flags = format!("{verb} {flags}");
        }
        out += &match command.operands() {
            Operands::None | Operands::Name | Operands::NameAndRevision | Operands::Reason => {
                format!("            choices=\"{flags}\" ;;\n")
            }
            Operands::Agents => {
                format!("            choices=\"{flags} $(_buildosctl_agents)\" ;;\n")
            }
            Operands::Journalctl => format!("            choices=\"{JOURNALCTL}\" ;;\n"),
            Operands::Tap | Operands::TapAndPort => {
                format!("            choices=\"{flags} $(_buildosctl_machines)\" ;;\n")
            }
            Operands::Volume => format!("            choices=\"state machines {flags}\" ;;\n"),
            Operands::Files | Operands::File | Operands::Directory => {
                format!("            choices=\"{flags}\" files=yes ;;\n")
            }
        };
    }
    out + BASH_TAIL
}

const ZSH_HEAD: &str = r#"#compdef buildosctl
# zsh completion of buildosctl(1)
# Made by docs/generate-buildosctl from crates/buildosctl/src/cli/commands.rs.

_buildosctl_agents() {
    local -a agents
    agents=(${(f)"$(buildosctl agents 2>/dev/null | sed -n 's/^\(b[a-z]*@[^ ]*\) .*/\1/p')"})
    compadd -a agents
}

_buildosctl_machines() {
    local -a machines
    machines=(${(f)"$(buildosctl machines 2>/dev/null | sed -n 's/^\([^ -][^ ]*\) *br[^ ]* .*/\1/p')"})
    compadd -a machines
}

_buildosctl() {
    local curcontext=$curcontext state line
    local -a commands
    commands=(
"#;

/// Returns the completion of zsh.
pub(super) fn zsh() -> String {
    let mut out = ZSH_HEAD.to_owned();
    for command in &COMMANDS {
        out += &format!(
            "        {}\n",
            quoted(&format!("{}:{}", command.name, command.summary))
        );
    }
    out += "    )\n    _arguments -C";
    for flag in GLOBAL.into_iter().chain(DEFAULT.flags()) {
        out += &format!(" \\\n        {}", zsh_flag(flag));
    }
    out += " \\\n        '1: :->command' '*:: :->operands'\n";
    out += "    case $state in\n        command) _describe command commands ;;\n        operands)\n            case $words[1] in\n";
    for group in groups() {
        let Some(command) = group.first() else {
            continue;
        };
        out += &format!("                {})\n", names(&group, " | "));
        let verbs: Vec<_> = command.forms.iter().filter_map(|form| form.verb).collect();
        let operands = match command.operands() {
            Operands::None | Operands::Name | Operands::NameAndRevision | Operands::Reason => None,
            Operands::Agents => Some("'*:agent:_buildosctl_agents'"),
            Operands::Files => Some("'*:file:_files'"),
            Operands::File => Some("':file:_files'"),
            Operands::Directory => Some("'*:directory:_files -/'"),
            Operands::Tap | Operands::TapAndPort => Some("'*:machine:_buildosctl_machines'"),
            Operands::Volume => Some("'*:volume:(state machines)'"),
            Operands::Journalctl => {
                out += "                    words[1]=journalctl\n                    _normal ;;\n";
                continue;
            }
        };
        out += "                    _arguments";
        for flag in command.flags().into_iter().chain([Flag::Help]) {
            out += &format!(" \\\n                        {}", zsh_flag(flag));
        }
        if !verbs.is_empty() {
            out += &format!(
                " \\\n                        '1:verb:({})'",
                verbs.join(" ")
            );
        }
        if let Some(operands) = operands {
            out += &format!(" \\\n                        {operands}");
        }
        out += " ;;\n";
    }
    out + "            esac ;;\n    esac\n}\n\n_buildosctl \"$@\"\n"
}

/// Returns the specification of a flag for `_arguments` (zshcompsys(1)).
fn zsh_flag(flag: Flag) -> String {
    let (long, summary) = (flag.long(), flag.summary());
    if let Some(short) = flag.short() {
        // Nothing completes after it.
        return format!(
            "'(- *)'{{-{short},--{long}}}{}",
            quoted(&format!("[{summary}]"))
        );
    }
    let value = match flag.value() {
        None => return quoted(&format!("--{long}[{summary}]")),
        Some(Value::Seconds) => ":seconds: ".to_owned(),
        Some(Value::Time) => ":time: ".to_owned(),
        Some(Value::Text) => ":string: ".to_owned(),
        Some(Value::Number) => ":number: ".to_owned(),
        Some(Value::Name) => ":name: ".to_owned(),
        Some(Value::Key) => ":key: ".to_owned(),
        Some(Value::File) => ":file:_files".to_owned(),
        Some(Value::Device) => ":device:_files".to_owned(),
        Some(Value::Identity) => ":id: ".to_owned(),
        Some(Value::Directory) => ":directory:_files -/".to_owned(),
        Some(Value::Daemon) => format!(":daemon:({})", daemons()),
    };
    quoted(&format!("--{long}=[{summary}]{value}"))
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[test]
fn summaries_have_no_special_characters_of_zsh() {
    for command in &COMMANDS {
        assert!(
            !command.summary.contains(['[', ']', ':']),
            "{}",
            command.name
        );
        for flag in command.flags() {
            assert!(!flag.summary().contains(['[', ']', ':']), "{flag:?}");
        }
    }
}

#[test]
fn bash_completes_commands_flags_values_and_agents() {
    let script = format!(
        r#"{}
        buildosctl() {{ printf 'bbot@default  running  x\nbbot@second  waiting  y\n'; }}
        COMP_WORDBREAKS=' @=' COMP_LINE=$0 COMP_POINT=${{#COMP_LINE}}
        _buildosctl
        printf '%s ' "${{COMPREPLY[@]}}""#,
        bash()
    );
    for (line, expected) in [
        ("buildosctl wh", "why "),
        ("buildosctl --j", "--json "),
        ("buildosctl drain --", "--wait --budget --help "),
        ("buildosctl drain --budget ", " "),
        ("buildosctl check --daemon nat", "natd "),
        ("buildosctl check --daemon=h", "hostnamed "),
        ("buildosctl publish pro", "promote "),
        ("buildosctl why b", "bbot@default bbot@second "),
        // readline has begun a new word at @.
        ("buildosctl why --json bbot@s", "@second "),
    ] {
        let output = std::process::Command::new("bash")
            .args(["-c", &script, line])
            .output()
            .unwrap();
        let words = String::from_utf8(output.stdout).unwrap();
        assert_eq!(words, expected, "{line}");
    }
}
