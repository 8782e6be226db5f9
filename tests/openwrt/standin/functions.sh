# Stand-in for OpenWrt's lib/functions.sh: what the scripts under test use of it, reading the same UCI files.
# Several functions change variables by name, as the originals do.

config_load() {
	eval "$(uci shell "$1")"
}

# variable, section, option, default
config_get() {
	eval "$1=\"\${CONFIG_$2_$3:-\$4}\""
}

config_get_bool() {
	config_get "$@"
	eval "case \"\$$1\" in
	1 | on | true | yes | enabled) $1=1 ;;
	0 | off | false | no | disabled) $1=0 ;;
	*) $1=\"\$4\" ;;
	esac"
}

# function, type, further arguments of the function
config_foreach() {
	local function="$1" wanted="$2" section found
	shift 2

	for section in $CONFIG_SECTIONS; do
		config_get found "$section" TYPE
		[ "$found" != "$wanted" ] || "$function" "$section" "$@"
	done
}
