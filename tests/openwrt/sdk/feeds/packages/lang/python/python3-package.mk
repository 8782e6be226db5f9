# Stand-in for the feed's python3-package.mk: what is installed is byte code in place of source, run by SDK_ROOT's Python.

PYTHON3_PKG_DIR:=/usr/lib/python$(PYTHON3_VERSION)/site-packages

define Build/Compile
	cd $(PKG_BUILD_DIR) && $(PYTHON3) -m pip --disable-pip-version-check install --quiet --no-deps --no-index \
		--no-build-isolation --no-compile --ignore-installed --no-warn-script-location --root-user-action=ignore \
		--prefix=/usr --root=$(PKG_INSTALL_DIR) .
endef

define Python3/FixShebang
	sed -i '1s,^#!.*python.*,#!$(SDK_ROOT)/usr/bin/python3,' $(1)
endef

define Py3Package
  define Package/$(1)/install
	$$(call Py3Package/$(1)/install,$$(1))
	$(INSTALL_DIR) $$(1)$(PYTHON3_PKG_DIR)
	$(CP) $(PKG_INSTALL_DIR)$(PYTHON3_PKG_DIR)/. $$(1)$(PYTHON3_PKG_DIR)/
	rm -rf $$(addprefix $$(1),$$(patsubst -|%,%,$$(filter -|%,$$(Py3Package/$(1)/filespec))))
	$(PYTHON3) -m compileall -q -b -d / $$(1)
	find $$(1) -name '*.py' -delete
  endef

  define Package/$(1)-src
    $(Package/$(1))
    DEPENDS:=
  endef
endef
