# Completion of rsig for fish. It knows no words itself: rsig answers by its own definitions and its state file.

function __rsig_complete
    set -l words (commandline --current-process --tokenize --cut-at-cursor)
    set -l current (commandline --current-token --cut-at-cursor)
    RSIG_COMPLETE=fish command rsig $words[2..-1] "$current" 2>/dev/null
end

complete --command rsig --no-files --keep-order --arguments '(__rsig_complete)'
