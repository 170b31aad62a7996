# What a shell does while it waits for its script, behind the functions that scripts share. Sets names with rs_ alone: the
# script may be one that starts a job.

rs_host
# It costs a fork. A shell waits for minutes, and who may write to the directory is its owner's to change.
[ ! -d "$rs_base" ] || private "$rs_base" || :
