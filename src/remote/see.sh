# Looks at jobs.

# see INDEX PLACE : how the job there stands.
see() {
	place "$2"
	! enter "$dir" || look
	report "$1"
}
