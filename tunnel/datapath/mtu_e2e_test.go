//go:build e2e && linux

package datapath_test

import "testing"

// TestMTUAll is every kind of change of the underlay's MTU, towards hosts of
// either kind, over either outer family.
func TestMTUAll(t *testing.T) {
	for _, c := range []mtuCase{
		{"router", 1500, false, routers(1400, 1280, 1500)},
		{"silent router", 1500, true, routers(1400, 1357, 1280, 1500)},
		{"own link", 1500, false, links(1400, 1280, 1500)},
		{"jumbo", 9000, false, routers(1500, 9000)},
		{"silent jumbo", 9000, true, routers(1400, 9000)},
		{"jumbo link", 9000, false, links(1500, 1280, 9000)},
	} {
		for _, kernel := range []bool{false, true} {
			for _, outerFamily := range []int{4, 6} {
				c.run(t, outerFamily, kernel)
			}
		}
	}
}
