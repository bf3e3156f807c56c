package kernel

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProbe(t *testing.T) {
	h := newHost(t)
	before := h.dump()
	if err := h.driver.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.checkForeign(before)
	// What a killed process left is removed.
	h.run("ip link add weft-probe type vxlan id 16777214 dstport 46237")
	if err := h.driver.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.checkForeign(before)
	h.run("ip link add weft-probe type bridge")
	if err := h.driver.Probe(t.Context()); err == nil {
		t.Error("squatter: no error")
	} else {
		wantText(t, err.Error(), "weft-probe", `type "bridge"`)
	}
}

// TestNoRights holds that a refusal names the right that is missing.
func TestNoRights(t *testing.T) {
	h := newHost(t)
	var probe, apply error
	err := h.Do(func() error {
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			return err
		}
		probe = h.driver.Probe(t.Context())
		apply = h.driver.Apply(t.Context(), device4())
		_, err := h.driver.Observe(t.Context()) // needs no rights
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{probe, apply} {
		if err == nil {
			t.Fatal("no error without rights")
		}
		wantText(t, err.Error(), "RTM_NEWLINK vxlan: operation not permitted", "CAP_NET_ADMIN")
	}
}

func TestExplainNoVXLAN(t *testing.T) {
	text := (&Driver{}).explainCreate(device4(), unix.EOPNOTSUPP).Error()
	wantText(t, text, "kernel: RTM_NEWLINK vxlan: operation not supported", "modprobe vxlan", "linux-modules-extra-raspi")
}

func TestIsVXLANName(t *testing.T) {
	for name, want := range map[string]bool{
		"flannel.1": true, "flannel.4096": true, "flannel-v6.1": true,
		"flannel.": false, "flannel": false, "flannel-v6.": false, "flannel.1a": false, "xflannel.1": false,
		"flannel.-1": false, "flannel..1": false, "flannel-v6": false, "flannel-wg": false, "flannel-v6.1.2": false, "": false,
	} {
		if got := isVXLANName(name); got != want {
			t.Errorf("isVXLANName(%q) = %t, want %t", name, got, want)
		}
	}
}

// TestCloseTwice holds that a closed Driver answers with errors.
func TestCloseTwice(t *testing.T) {
	h := newHost(t)
	for range 2 {
		if err := h.driver.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := h.driver.Apply(t.Context(), device4()); err == nil || !strings.Contains(err.Error(), "link flannel.1") {
		t.Errorf("apply after Close: %v", err)
	}
	if _, err := h.driver.Observe(t.Context()); err == nil {
		t.Error("observe after Close: no error")
	}
}
