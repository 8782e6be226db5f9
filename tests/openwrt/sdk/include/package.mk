# Stand-in for OpenWrt's package.mk: `make PACKAGE SDK_BUILD=DIR SDK_ROOT=DIR` builds a package and installs its
# files below SDK_ROOT; `make info` says what a Makefile declares, a line for each field; `make conffiles` the files
# that are kept.

PKG_BUILD_DIR?=$(BUILD_DIR)/$(PKG_NAME)-$(PKG_VERSION)
PKG_INSTALL_DIR:=$(PKG_BUILD_DIR)/ipkg-install
BUILT:=$(PKG_BUILD_DIR)/.built

$(BUILT):
	mkdir -p $(PKG_BUILD_DIR) $(PKG_INSTALL_DIR)
	$(call Build/Prepare)
	$(call Build/Compile)
	touch $@

FIELDS:=SECTION CATEGORY TITLE URL DEPENDS USERID PKGARCH
SOURCE_FIELDS:=PKG_NAME PKG_VERSION PKG_RELEASE PKG_SOURCE PKG_HASH PKG_LICENSE PKG_LICENSE_FILES PKG_MAINTAINER

define BuildPackage
  $(foreach field,$(FIELDS),$(eval $(field):=))
  $(eval $(Package/$(1)))
  $(if $(filter info,$(MAKECMDGOALS)),$(foreach field,$(FIELDS),$(info $(1)|$(field)|$(strip $($(field))))))
  $(if $(filter conffiles,$(MAKECMDGOALS)),$(info $(Package/$(1)/conffiles)))
  $(1): $(BUILT)
	$$(call Package/$(1)/install,$(SDK_ROOT))
endef

conffiles:
	@:

info:
	@:$(foreach field,$(SOURCE_FIELDS),$(info |$(field)|$($(field))))
