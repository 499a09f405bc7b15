# Delegates to debian/build, image/build, image/boot and tests/.

# Without links to files of a running host: make would look for the files.
IMAGE_FILES = $(shell find image -not -type d -not -xtype l -not -path '*/__pycache__/*' \
	-not -path 'image/simlan/*')

help:
	@echo 'sudo make boot          build everything and boot a build host in QEMU'
	@echo 'sudo make check         build everything and run all tests'
	@echo
	@echo 'sudo make check-fast    format, lints, unit tests'
	@echo 'sudo make check-system  the packages, on hosts in namespaces'
	@echo 'sudo make check-system-all as check-system, with the long tests of kills and power cuts'
	@echo 'sudo make check-boot    the image, on machines in QEMU'
	@echo 'sudo make check-boot-all as check-boot, with every way to boot and every failure'
	@echo 'sudo make bench         netd beside other DHCP clients, into docs/bench-dhcp.md'
	@echo 'sudo make measure       size, boot and RAM of the image, into docs/figures.md'
	@echo 'sudo make docs          the documentation in one page, build/docs/index.html'
	@echo 'sudo make check-reproducible build the packages again elsewhere and compare them'
	@echo 'sudo make debs          the Debian packages, in build/debs'
	@echo 'sudo make image         buildos-image and buildos-initrd, in build/image'
	@echo 'sudo make clean         remove build/, with the Debian roots and caches'

boot: build/demo/SHA256SUMS
	image/boot

# In this order: the cheapest lane first.
check:
	$(MAKE) --no-print-directory check-fast
	$(MAKE) --no-print-directory check-system
	$(MAKE) --no-print-directory check-boot

check-fast: host-packages
	tests/fast

# Two files of tests at a time: most of their time is waiting.
check-system: build/debs/.stamp
	tests/lane tests/system -n 2 --dist=loadfile

check-system-all: build/debs/.stamp
	tests/lane tests/system --all

check-boot: build/demo/SHA256SUMS
	tests/lane tests/boot

check-boot-all: build/demo/SHA256SUMS
	tests/lane tests/boot --all

# The booted image has the stand-ins for agents and the shipped compression.
measure: build/image/SHA256SUMS
	image/build --output build/measured --package buildos-doubles
	image/build --output build/peers/networkd --no-buildos --package buildos-doubles \
		--tree image/peers/networkd/root --prune image/peers/networkd/prune
	image/peers/live/build build/peers/live
	image/measure --image build/measured --peer build/peers/networkd --peer build/peers/live \
		--boots 5 --write docs/figures.md

bench: build/debs/.stamp
	tests/bench/dhcp --write docs/bench-dhcp.md

check-reproducible: build/debs/.stamp
	debian/check-reproducible

docs: host-packages
	docs/generate-html

debs: build/debs/.stamp

image: build/image/SHA256SUMS

clean:
	rm -rf build

host-packages:
	debian/install-host-packages debian/host-packages image/host-packages tests/host-packages

# debian/build does nothing if the packages are up to date.
build/debs/.stamp: host-packages FORCE
	debian/build

build/image/SHA256SUMS: build/debs/.stamp $(IMAGE_FILES)
	image/build --output build/image

# The image of the demonstration and the boot lane has the stand-ins for agents, the libraries
# for a TPM and a fast compression.
build/demo/SHA256SUMS: build/debs/.stamp $(IMAGE_FILES)
	image/build --output build/demo --package buildos-doubles --level 3 \
		--package libtss2-esys-3.0.2-0t64 --package libtss2-rc0t64

FORCE:

.PHONY: help boot check check-reproducible docs check-fast check-system check-system-all check-boot check-boot-all measure bench debs image clean host-packages FORCE
