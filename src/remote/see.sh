# Reports the states of jobs.

# see INDEX PLACE : reports the job.
see() {
	place "$2"
	! enter "$dir" || look
	report "$1"
}
