# Completion of rsig for fish. rsig itself knows the words: it answers from its definitions and its state file.

function __rsig_complete
    set -l words (commandline --current-process --tokenize --cut-at-cursor)
    set -l current (commandline --current-token --cut-at-cursor)
    RSIG_COMPLETE=fish command rsig $words[2..-1] "$current" 2>/dev/null
end

complete --command rsig --no-files --keep-order --arguments '(__rsig_complete)'
