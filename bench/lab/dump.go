package lab

import (
	"fmt"
	"slices"
	"strings"
)

// Dump tables.
const (
	DumpLinks  = "links"  // devices but loopback, with what is set on them
	DumpAddrs  = "addrs"  // addresses but loopback's and the IPv6 link-local
	DumpRoutes = "routes" // main table, both families, but the IPv6 link-local
	DumpNeigh  = "neigh"  // permanent neighbours: what was put there, not learned
	DumpFDB    = "fdb"    // bridge and VXLAN entries that lead to another host
	DumpNFT    = "nft"    // the ruleset as the nft program prints it
)

// Dump prints a table of the namespace's kernel state, one object per line,
// much like iproute2 does, but sorted and without what differs between two
// runs: no indexes, no counters, no times. Device, if not empty, leaves only
// the lines of that device. The nft table is in the kernel's order, as that
// matters, and needs the nft program.
func (n *Namespace) Dump(table, device string) (string, error) {
	var lines []dumpLine
	var text string
	err := n.Do(func() (err error) {
		switch table {
		case DumpLinks:
			lines, err = dumpLinks()
		case DumpAddrs:
			lines, err = dumpAddrs()
		case DumpRoutes:
			lines, err = dumpRoutes()
		case DumpNeigh:
			lines, err = dumpNeigh()
		case DumpFDB:
			lines, err = dumpFDB()
		case DumpNFT:
			text, err = dumpNFT()
		default:
			err = fmt.Errorf("no such table: want links, addrs, routes, neigh, fdb or nft")
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("dump %s of %s: %w", table, n.name, err)
	}
	if table == DumpNFT {
		return text, nil
	}
	var printed []string
	for _, line := range lines {
		if device == "" || line.device == device {
			printed = append(printed, line.text+"\n")
		}
	}
	slices.Sort(printed)
	return strings.Join(printed, ""), nil
}

// dumpLine is a line of a table and the device it is about.
type dumpLine struct{ device, text string }

// fields collects the words of a line.
type fields []string

func (f *fields) add(words ...string) { *f = append(*f, words...) }

// addIf adds words if a condition holds.
func (f *fields) addIf(condition bool, words ...string) {
	if condition {
		f.add(words...)
	}
}

func (f fields) line(device string) dumpLine {
	return dumpLine{device: device, text: strings.Join(f, " ")}
}

// Symbols names the MAC addresses of all devices on all hosts and pods,
// each as "<host:device>", so that dumps can be compared between runs.
func (l *Lab) Symbols() (map[string]string, error) {
	symbols := map[string]string{}
	for _, host := range l.Hosts() {
		host.mu.Lock()
		places := append([]*Namespace{host.Namespace}, host.namespaces...)
		host.mu.Unlock()
		for _, place := range places {
			macs, err := place.macs()
			if err != nil {
				return nil, fmt.Errorf("list devices of %s: %w", place.name, err)
			}
			for device, mac := range macs {
				symbols[mac] = "<" + place.name + ":" + device + ">"
			}
		}
	}
	return symbols, nil
}

func (n *Namespace) macs() (macs map[string]string, err error) {
	err = n.Do(func() error {
		macs, err = deviceMACs()
		return err
	})
	return macs, err
}
