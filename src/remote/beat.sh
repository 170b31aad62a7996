# Keeps a job's tether: each line that comes is a sign of life. Ends with its input.
# Given by the client: place.

place "$place"
if enter "$dir"; then
	beats=0
	rs_say held
	rs_flush
	while read -r line; do
		beats=$((beats + 1))
		printf '%s.%s\n' "$$" "$beats" >beat
	done
fi
rs_end
