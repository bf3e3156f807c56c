package main

import (
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
)

func TestOffloads(t *testing.T) {
	tests := map[string]struct {
		flags    map[string]string
		offloads datapath.Offloads
		keep     kept
	}{
		"none":     {},
		"kernel's": {flags: map[string]string{"tso": "off", "uso": "on", "gso": "on", "gro": "off"}, offloads: datapath.Offloads{TSO: tunnel.Off, USO: tunnel.On, GSO: tunnel.On, GRO: tunnel.Off}},
		"checksum": {flags: map[string]string{"checksum": "off"}, keep: kept{checksums: true}},
		"acks":     {flags: map[string]string{"acks": "off", "checksum": "auto"}, keep: kept{acks: true}},
		"ring":     {flags: map[string]string{"ring": "on"}, offloads: datapath.Offloads{Ring: tunnel.On}},
		"acks on":  {flags: map[string]string{"acks": "on"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			offloads, keep, err := options{offload: tt.flags}.offloads()
			if err != nil || offloads != tt.offloads || keep != tt.keep {
				t.Errorf("%v: %+v, %+v, %v, want %+v, %+v", tt.flags, offloads, keep, err, tt.offloads, tt.keep)
			}
		})
	}
}
