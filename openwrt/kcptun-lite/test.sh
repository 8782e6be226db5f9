#!/bin/sh
# Run on the target by the feed's CI after an installation: $1 package, $2 version.

case "$1" in
kcptun-lite-client | kcptun-lite-server)
	"$1" --version 2>&1 | grep -F "$2"
	;;
kcptun-lite)
	python3 -c 'import kcptun_lite, sys; sys.exit(kcptun_lite.__version__ != sys.argv[1])' "$2"
	;;
esac
