package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/weft-net/weft/tunnel"
)

// family is what differs between the two tables.
type family struct {
	nft       nftables.TableFamily
	name      string // as in nft and tunnel.Firewall's key
	source    uint32 // offset of the source address in the IP header
	target    uint32 // and of the destination address
	multicast netip.Prefix
}

var (
	ip4 = family{nftables.TableFamilyIPv4, "ip", 12, 16, netip.MustParsePrefix("224.0.0.0/4")}
	ip6 = family{nftables.TableFamilyIPv6, "ip6", 8, 24, netip.MustParsePrefix("ff00::/8")}
)

func familyOf(fw tunnel.Firewall) family {
	if fw.Network.Addr().Is4() {
		return ip4
	}
	return ip6
}

func (f family) table() *nftables.Table { return &nftables.Table{Name: Table, Family: f.nft} }

// chain is one chain with its rules, as we write it and as we read it back.
type chain struct {
	*nftables.Chain
	rules []rule
}

type rule struct {
	comment string
	exprs   []expr.Any
}

// returnMark is set on packets that some other program wants left alone:
// kube-proxy's masquerade mark.
const returnMark = 0x4000

// render returns what the table holds for a Firewall. The chain "spec" is
// never run: its comment is the Firewall itself, for Observe and for people.
func render(want tunnel.Firewall) []chain {
	f := familyOf(want)
	table := f.table()
	chains := []chain{{
		Chain: &nftables.Chain{Table: table, Name: specChain},
		rules: []rule{{formatSpec(want), []expr.Any{verdict(expr.VerdictReturn)}}},
	}}
	policy := nftables.ChainPolicyAccept
	if want.Masquerade {
		chains = append(chains, chain{
			Chain: &nftables.Chain{
				Table: table, Name: "postrouting", Type: nftables.ChainTypeNAT, Policy: &policy,
				Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
			},
			rules: f.masquerade(want),
		})
	}
	if want.Forward {
		chains = append(chains, chain{
			Chain: &nftables.Chain{
				Table: table, Name: "forward", Type: nftables.ChainTypeFilter, Policy: &policy,
				Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
			},
			rules: []rule{
				{"from pods", f.match(verdict(expr.VerdictAccept), f.from(want.Network))},
				{"to pods", f.match(verdict(expr.VerdictAccept), f.to(want.Network))},
			},
		})
	}
	return chains
}

// masquerade returns the rules in the order and meaning of flannel's iptables
// rules. Its nftables rules differ in the fourth and so never come to the last.
func (f family) masquerade(want tunnel.Firewall) []rule {
	leave := verdict(expr.VerdictReturn)
	masquerade := &expr.Masq{FullyRandom: want.RandomFully}
	network, subnet := want.Network, want.Subnet
	return []rule{
		{"left to kube-proxy", append(marked(returnMark), leave)},
		{"own pods to any pod", f.match(leave, f.from(subnet), f.to(network))},
		{"any pod to own pods", f.match(leave, f.from(network), f.to(subnet))},
		{"outside to own pods", f.match(leave, f.notFrom(network), f.to(subnet))},
		{"pods to outside", f.match(masquerade, f.from(network), f.notTo(f.multicast))},
		{"outside to other hosts' pods", f.match(masquerade, f.notFrom(network), f.to(network))},
	}
}

func verdict(kind expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: kind} }

// register is where each match loads what it compares.
const register = 1

// marked matches packets that have all bits of a mark.
func marked(mark uint32) []expr.Any {
	bits := binary.NativeEndian.AppendUint32(nil, mark)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: register},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: bits, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: bits},
	}
}

func (f family) from(p netip.Prefix) []expr.Any    { return address(f.source, p, expr.CmpOpEq) }
func (f family) notFrom(p netip.Prefix) []expr.Any { return address(f.source, p, expr.CmpOpNeq) }
func (f family) to(p netip.Prefix) []expr.Any      { return address(f.target, p, expr.CmpOpEq) }
func (f family) notTo(p netip.Prefix) []expr.Any   { return address(f.target, p, expr.CmpOpNeq) }

// address compares an address in the IP header with a prefix.
func address(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	size := uint32(p.Addr().BitLen() / 8)
	return []expr.Any{
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{
			SourceRegister: register, DestRegister: register, Len: size,
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size),
		},
		&expr.Cmp{Op: op, Register: register, Data: p.Masked().Addr().AsSlice()},
	}
}

// match joins conditions and what is done when all hold.
func (family) match(action expr.Any, conditions ...[]expr.Any) (exprs []expr.Any) {
	for _, condition := range conditions {
		exprs = append(exprs, condition...)
	}
	return append(exprs, action)
}

// userData is how nft stores a rule's comment.
func userData(comment string) []byte {
	return userdata.AppendString(nil, userdata.TypeComment, comment)
}

// check names the field that cannot be.
func check(want tunnel.Firewall) error {
	switch network, subnet := want.Network, want.Subnet; {
	case !network.IsValid():
		return errors.New("network: not set")
	case !subnet.IsValid():
		return errors.New("subnet: not set")
	case network != network.Masked():
		return fmt.Errorf("network %s has bits beyond its length: want %s", network, network.Masked())
	case subnet != subnet.Masked():
		return fmt.Errorf("subnet %s has bits beyond its length: want %s", subnet, subnet.Masked())
	case !network.Contains(subnet.Addr()) || subnet.Bits() < network.Bits():
		return fmt.Errorf("subnet %s is not inside network %s", subnet, network)
	}
	return nil
}
