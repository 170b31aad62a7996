# Completion of rsig for nushell. rsig itself knows the words: it answers from its definitions and its state file.
#
# A completer for external commands that is configured already goes on answering for all others.

$env.config.completions.external.enable = true

let rsig_others = ($env.config.completions.external.completer? | default null)

$env.config.completions.external.completer = {|spans: list<string>|
    if $spans.0 == "rsig" {
        let answer = (with-env {RSIG_COMPLETE: nushell} { ^rsig ...($spans | skip 1) | complete })
        $answer.stdout | lines | each {|line|
            let parts = ($line | split row --number 2 "\t")
            {value: $parts.0, description: ($parts | get --optional 1 | default "")}
        }
    } else if $rsig_others != null {
        do $rsig_others $spans
    }
}
