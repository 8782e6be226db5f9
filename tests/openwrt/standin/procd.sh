# Stand-in for OpenWrt's procd.sh: every call goes into the file $PROCD_RECORD as it is, the number of its words
# and the words, each ended by a zero byte. router.py makes of it the message procd would get.

tell() {
	printf '%s\0' "$#" "$@" >>"$PROCD_RECORD"
}

for _call in open_instance set_param append_param close_instance add_jail add_jail_mount add_jail_mount_rw \
	add_reload_trigger add_interface_trigger send_signal; do
	eval "procd_$_call() { tell $_call \"\$@\"; }"
done

# validate_data prints these when it is asked for no section.
for _call in json_add_object json_add_string json_close_object; do
	eval "$_call() { tell $_call \"\$@\"; }"
done

procd_add_validation() {
	tell open_validate
	"$@"
	tell close_validate
}

# Like the original: values become variables, complaints come out only if there is something to complain about.
uci_validate_section() {
	local result error

	result="$(validate_data "$@" 2>/dev/null)"
	error=$?
	eval "$result"
	[ "$error" -eq 0 ] || validate_data "$@" >/dev/null
	return "$error"
}

_procd_status() {
	echo "$PROCD_STATUS"
	[ "$PROCD_STATUS" = running ]
}
