# shellcheck shell=bash
# Completion of rsig for bash. rsig itself knows the words: it answers from its definitions and its state file.

_rsig() {
    # Readline splits words at ":", "=" and "@"; join what was typed without blanks.
    local rest=${COMP_LINE:0:COMP_POINT} words=() last=-1 i unblanked
    for ((i = 0; i <= COMP_CWORD; i++)); do
        unblanked=${rest#"${rest%%[![:space:]]*}"}
        if ((i == 0)) || [[ $unblanked != "$rest" ]]; then
            words[++last]=
        fi
        if ((i == COMP_CWORD)); then
            words[last]+=$unblanked
        else
            words[last]+=${COMP_WORDS[i]}
            rest=${unblanked#"${COMP_WORDS[i]}"}
        fi
    done

    # Readline replaces only the end of the word.
    local word=${words[last]} candidate paths=
    local kept=${word%"$2"}
    COMPREPLY=()
    while IFS= read -r candidate; do
        candidate=${candidate%%$'\t'*}
        COMPREPLY+=("${candidate#"$kept"}")
        [[ $candidate != *[/[:space:]]* ]] || paths=1
    done < <(RSIG_COMPLETE=bash command rsig "${words[@]:1}" 2>/dev/null)

    if [[ $paths ]]; then
        compopt -o filenames 2>/dev/null
    fi
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then
        compopt -o nospace 2>/dev/null
    fi
}

# The order is rsig's; bash before 4.4 sorts.
complete -o nosort -F _rsig rsig 2>/dev/null || complete -F _rsig rsig
