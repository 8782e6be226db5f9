# Stand-in for OpenWrt's rules.mk: the tools a package's Makefile uses.

all:

BUILD_DIR:=$(SDK_BUILD)
INCLUDE_DIR:=$(TOPDIR)/include
INSTALL_DIR:=install -d -m0755
INSTALL_DATA:=install -m0644
INSTALL_CONF:=install -m0600
INSTALL_BIN:=install -m0755
CP:=cp -fpR
