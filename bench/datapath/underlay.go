package datapath

import "github.com/weft-net/weft/bench/lab"

// Underlay is what the link between the two hosts leaves to them.
type Underlay struct {
	Name    string
	About   string
	offload lab.Offload
}

// Underlays are those that there are. Only together they are honest: the first
// flatters everybody, the kernel most.
var Underlays = []Underlay{
	{"A", "veth as it comes: super-packets cross it whole", lab.OffloadFull},
	{"B", "no segmentation offload: every host cuts packets to the MTU, the receiver joins them", lab.OffloadChecksum},
	{"C", "B, and no transmit checksum offload: like a wire", lab.OffloadNone},
}

// underlayMTU is the MTU of the link between the hosts.
const underlayMTU = 1500

// String is the underlay's name.
func (u Underlay) String() string { return u.Name }
