# Completion of rsig for elvish. rsig itself knows the words: it answers from its definitions and its state file.

use str

set edit:completion:arg-completer[rsig] = {|@words|
    e:env RSIG_COMPLETE=elvish rsig (all $words[1..]) 2>/dev/null | from-lines | each {|line|
        var value help = (str:split "\t" $line)
        var display = $value
        if (not-eq $help '') {
            set display = $value'  ('$help')'
        }
        # What ends in a slash is a directory, and goes on.
        var suffix = ' '
        if (str:has-suffix $value '/') {
            set suffix = ''
        }
        edit:complex-candidate $value &display=$display &code-suffix=$suffix
    }
}
