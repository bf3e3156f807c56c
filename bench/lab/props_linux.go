package lab

import (
	"errors"
	"fmt"
	"math"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// set gives both ends of the cable the properties. Rate and offloads work
// where a frame leaves an end, so both ends have them; loss is the switch's.
func (c *cable) set(props LinkProps) error {
	if props.MTU == 0 {
		props.MTU = defaultMTU
	}
	if props.Offload == "" {
		props.Offload = OffloadFull
	}
	err := c.host.Do(func() error { return c.setEnd(c.device, props) })
	if err != nil {
		return err
	}
	err = c.outside.Do(func() error {
		if err := c.setEnd(c.port, props); err != nil {
			return err
		}
		if err := setLoss(c.port, props.LossPercent); err != nil {
			return err
		}
		return setCarrier(c.port, !props.Down)
	})
	if err != nil {
		return err
	}
	c.props = props
	if props.Down {
		return nil
	}
	return c.awaitCarrier()
}

// setEnd sets what both ends have in common.
func (c *cable) setEnd(device string, props LinkProps) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	if link.Attrs().MTU != props.MTU {
		if err := netlink.LinkSetMTU(link, props.MTU); err != nil {
			return fmt.Errorf("set MTU of %s: %w", device, err)
		}
	}
	if err := setRate(link, props.RateBits); err != nil {
		return fmt.Errorf("set rate of %s: %w", device, err)
	}
	if props.Offload == c.props.Offload || props.Offload == OffloadFull && c.props.Offload == "" {
		return nil
	}
	// Only the receiving host coalesces what arrives cut.
	coalesce := device == c.device && props.Offload != OffloadFull
	if err := setOffload(device, props.Offload, coalesce); err != nil {
		return fmt.Errorf("set offloads of %s: %w", device, err)
	}
	return nil
}

// setCarrier pulls the cable at the switch's end, or plugs it in.
func setCarrier(port string, up bool) error {
	link, err := netlink.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find %s: %w", port, err)
	}
	if up {
		err = netlink.LinkSetUp(link)
	} else {
		err = netlink.LinkSetDown(link)
	}
	if err != nil {
		return fmt.Errorf("set carrier of %s: %w", port, err)
	}
	return nil
}

// setRate limits what leaves the link to a number of bits per second, with a
// queue of a twentieth of a second.
func setRate(link netlink.Link, bits uint64) error {
	attrs := netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
	}
	if bits == 0 {
		have, err := rootQdisc(link)
		if err != nil || have == nil || have.Type() != "tbf" {
			return err
		}
		return netlink.QdiscDel(have)
	}
	rate := bits / 8
	// The bucket holds a 64 KiB super-frame and what a slow clock tick refills.
	burst := max(rate/250, 1<<17)
	return netlink.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: attrs, Rate: rate, Buffer: netlink.Xmittime(rate, uint32(burst)), Limit: uint32(min(burst+rate/20, math.MaxUint32)),
	})
}

func rootQdisc(link netlink.Link) (netlink.Qdisc, error) {
	qdiscs, err := complete(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(link) })
	if err != nil {
		return nil, err
	}
	for _, qdisc := range qdiscs {
		if qdisc.Attrs().Parent == netlink.HANDLE_ROOT {
			return qdisc, nil
		}
	}
	return nil, nil
}

// complete repeats a netlink dump that changes underneath interrupted.
func complete[T any](dump func() (T, error)) (result T, err error) {
	for range 20 {
		if result, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return result, err
		}
	}
	return result, err
}

// setLoss drops a random share of the frames that come and go through a port
// of a bridge of the calling thread's namespace. Each port has its own table.
func setLoss(port string, percent float64) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: "loss-" + port})
	conn.DelTable(table) // it exists now, whether or not it did before
	if percent > 0 {
		conn.AddTable(table)
		addLossChain(conn, table, "from", nftables.ChainHookPrerouting, expr.MetaKeyIIFNAME, port, percent)
		addLossChain(conn, table, "to", nftables.ChainHookPostrouting, expr.MetaKeyOIFNAME, port, percent)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("set loss of %s: %w", port, err)
	}
	return nil
}

// lossUnits is how finely the share of lost frames is known.
const lossUnits = 1_000_000

func addLossChain(conn *nftables.Conn, table *nftables.Table, name string, hook *nftables.ChainHook,
	device expr.MetaKey, port string, percent float64) {
	chain := conn.AddChain(&nftables.Chain{
		Table: table, Name: name, Type: nftables.ChainTypeFilter,
		Hooknum: hook, Priority: nftables.ChainPriorityFilter,
	})
	portName := make([]byte, unix.IFNAMSIZ)
	copy(portName, port)
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: device, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: portName},
		&expr.Numgen{Register: 1, Modulus: lossUnits, Type: unix.NFT_NG_RANDOM},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(percent / 100 * lossUnits))},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
}
