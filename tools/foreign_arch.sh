#!/bin/sh
# Debian's Python for another processor, run by qemu-user without a chroot: tools/foreign_arch.sh ARCH makes it and
# prints the path of a program that is this Python; the root it is in lies beside it.
#
# s390x is big-endian with 64 bits; armhf, i386 and mipsel are little-endian with 32. Python, numpy and kcptun are
# unpacked into build/foreign/ARCH; pytest, which is pure Python, and cramjam, where it exists for the processor,
# come from pip.
#
# Needs root and, on Debian: apt-get install debootstrap qemu-user-static python3-pip

set -eu

arch="$1"
case "$arch" in
s390x) qemu=s390x platform=manylinux2014_s390x ;;
armhf) qemu=arm platform=manylinux_2_31_armv7l ;;
i386) qemu=i386 platform=manylinux2014_i686 ;;
mipsel) qemu=mipsel platform=none ;;
ppc64el) qemu=ppc64le platform=manylinux2014_ppc64le ;;
*)
	echo "$arch: not known here; s390x, armhf, i386, mipsel or ppc64el" >&2
	exit 2
	;;
esac

cd "$(dirname "$0")/.."
tree="$PWD/build/foreign/$arch"
root="$tree/root"
site="$tree/site"

if [ ! -e "$tree/ready" ]; then
	rm -rf "$tree"
	mkdir -p "$site"
	debootstrap --foreign --variant=minbase --arch="$arch" \
		--include=python3,python3-numpy,python3-pycryptodome,python3-cryptography,python3-cffi-backend,python3-hypothesis,kcptun bookworm "$root" >"$tree/log" 2>&1 || {
		tail "$tree/log" >&2
		exit 1
	}
	for package in "$root"/var/cache/apt/archives/*.deb; do
		dpkg-deb --extract "$package" "$root"
	done
	python3 -m pip install --quiet --target "$site" --python-version 3.11 --only-binary=:all: pytest configargparse
	python3 -m pip install --quiet --target "$site" --python-version 3.11 --only-binary=:all: --platform "$platform" \
		cramjam || echo "no cramjam for $arch: the tests of snappy cannot run" >&2
	# Debian has pycryptodome under its other name; the tests import it by the one it has in PyPI.
	cp -r "$root/usr/lib/python3/dist-packages/Cryptodome" "$site/Crypto"
	find "$site/Crypto" -name '*.py' -exec sed -i 's/Cryptodome/Crypto/g' {} +
	touch "$tree/ready"
fi

# As a program of its own, so that tests can start it again as sys.executable.
python="$tree/python3"
libraries="$(echo "$root"/usr/lib/*/blas "$root"/usr/lib/*/lapack | tr ' ' :)"
cat >"$python" <<EOF
#!/bin/sh
exec qemu-$qemu-static -L "$root" -E "LD_LIBRARY_PATH=$libraries" -E "PYTHONHOME=$root/usr" -E "PYTHONPATH=$site" \\
	-E PYTHONDONTWRITEBYTECODE=1 -0 "$python" "$root/usr/bin/python3" "\$@"
EOF
chmod +x "$python"
echo "$python"
