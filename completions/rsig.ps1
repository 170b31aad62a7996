# Completion of rsig for PowerShell. rsig itself knows the words: it answers from its definitions and its state file.

Register-ArgumentCompleter -Native -CommandName rsig -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    # The words before the one that is typed, without their quotes.
    $words = @(
        $commandAst.CommandElements | Select-Object -Skip 1 |
            Where-Object { $_.Extent.EndOffset -lt $cursorPosition } |
            ForEach-Object {
                if ($_ -is [System.Management.Automation.Language.StringConstantExpressionAst]) { $_.Value }
                else { $_.Extent.Text }
            }
    )
    $current = "$wordToComplete"
    # Before 7.3, PowerShell leaves out an empty argument.
    $version = $PSVersionTable.PSVersion
    if ($current -eq '' -and 100 * $version.Major + $version.Minor -lt 703) { $current = '""' }

    $program = Get-Command -Name rsig -CommandType Application | Select-Object -First 1
    $before = $env:RSIG_COMPLETE
    try {
        $env:RSIG_COMPLETE = 'powershell'
        $lines = @(& $program @words $current 2>$null)
    } finally {
        $env:RSIG_COMPLETE = $before
    }

    foreach ($line in $lines) {
        $value, $help = $line -split "`t", 2
        # A tool tip may not be empty.
        if (-not $help) { $help = $value }
        $text = if ($value -match '^[\w./:=,+-]+$') { $value } else { "'" + $value.Replace("'", "''") + "'" }
        [System.Management.Automation.CompletionResult]::new($text, $value, 'ParameterValue', $help)
    }
}
