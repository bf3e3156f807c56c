package guard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/weft-net/weft/tunnel"
)

// Observe reads our tables back. A table that holds anything else than what
// Apply writes for the Firewall named in it is returned as a Firewall that no
// want equals.
func (d *Driver) Observe(ctx context.Context) (map[tunnel.Key]tunnel.Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	objects := make(map[tunnel.Key]tunnel.Object)
	for _, f := range []family{ip4, ip6} {
		have, found, err := d.read(f)
		if err != nil {
			return nil, fmt.Errorf("observe table %s %s: %w", f.name, Table, explain(err))
		}
		if !found {
			continue
		}
		fw, err := have.firewall()
		if err != nil {
			d.log.Debug("firewall table is not as weft left it", "table", f.name+" "+Table, "err", err)
			fw = tunnel.Firewall{Network: netip.PrefixFrom(f.multicast.Addr(), 0).Masked()}
		}
		objects[fw.Key()] = fw
	}
	return objects, nil
}

// contents is a table as read back.
type contents struct {
	family family
	flags  uint32
	chains []chain
}

// read lists the family's table; found is false if there is none.
func (d *Driver) read(f family) (have contents, found bool, err error) {
	tables, err := d.nft.ListTablesOfFamily(f.nft)
	if err != nil {
		return have, false, fmt.Errorf("list tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == Table })
	if i < 0 {
		return have, false, nil
	}
	have = contents{family: f, flags: tables[i].Flags}
	chains, err := d.nft.ListChainsOfTableFamily(f.nft)
	if err != nil {
		return have, false, fmt.Errorf("list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != Table {
			continue
		}
		rules, err := d.nft.GetRules(f.table(), c)
		if err != nil {
			return have, false, fmt.Errorf("list rules of chain %s: %w", c.Name, err)
		}
		read := chain{Chain: c}
		for _, r := range rules {
			read.rules = append(read.rules, rule{comment: comment(r.UserData), exprs: r.Exprs})
		}
		have.chains = append(have.chains, read)
	}
	return have, true, nil
}

// comment is the inverse of userData; "" for anything else.
func comment(data []byte) string {
	if len(data) < 3 {
		return ""
	}
	text := string(data[2 : len(data)-1])
	if !bytes.Equal(userData(text), data) {
		return ""
	}
	return text
}

// firewall returns the Firewall that the table is exactly the rendering of.
func (c contents) firewall() (fw tunnel.Firewall, err error) {
	i := slices.IndexFunc(c.chains, func(c chain) bool { return c.Name == specChain && len(c.rules) == 1 })
	if i < 0 {
		return fw, errors.New("no description in it")
	}
	if fw, err = parseSpec(c.chains[i].rules[0].comment); err != nil {
		return fw, err
	}
	if err := check(fw); err != nil {
		return fw, err
	}
	if familyOf(fw).nft != c.family.nft {
		return fw, fmt.Errorf("described as %s", fw.Network)
	}
	want := render(fw)
	if !c.hasShape(want) {
		return fw, errors.New("other chains")
	}
	for i := range want {
		have := c.chain(want[i].Name)
		if !slices.EqualFunc(have.rules, want[i].rules, func(a, b rule) bool { return c.family.equal(a, b) }) {
			return fw, fmt.Errorf("other rules in chain %s", want[i].Name)
		}
	}
	return fw, nil
}

func (c contents) chain(name string) chain {
	i := slices.IndexFunc(c.chains, func(c chain) bool { return c.Name == name })
	if i < 0 {
		return chain{Chain: &nftables.Chain{}}
	}
	return c.chains[i]
}

// hasShape reports whether the table is in force and has these chains and no
// others, whatever rules are in them.
func (c contents) hasShape(want []chain) bool {
	if c.flags != 0 || len(c.chains) != len(want) {
		return false
	}
	for _, w := range want {
		have := c.chain(w.Name)
		if have.Name != w.Name || have.Type != w.Type || !same(have.Hooknum, w.Hooknum) ||
			!same(have.Priority, w.Priority) || !same(have.Policy, w.Policy) {
			return false
		}
	}
	return true
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// equal compares rules as they go over the wire: the library fills in some
// fields when it reads that nobody sets to write.
func (f family) equal(a, b rule) bool {
	return a.comment == b.comment && slices.EqualFunc(a.exprs, b.exprs, func(a, b expr.Any) bool {
		left, err := expr.Marshal(byte(f.nft), a)
		if err != nil {
			return false
		}
		right, err := expr.Marshal(byte(f.nft), b)
		return err == nil && bytes.Equal(left, right)
	})
}

// replace writes the whole table in one transaction. As long as the chains
// stay, only their rules are exchanged, and no packet passes between the old
// ones and the new.
func (d *Driver) replace(want tunnel.Firewall) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := familyOf(want)
	have, found, err := d.read(f)
	if err != nil {
		return err
	}
	table, chains := f.table(), render(want)
	d.nft.AddTable(table)
	if found && !have.hasShape(chains) {
		d.nft.DelTable(table)
		d.nft.AddTable(table)
	}
	for _, c := range chains {
		d.nft.AddChain(c.Chain)
	}
	d.nft.FlushTable(table)
	for _, c := range chains {
		for _, r := range c.rules {
			d.nft.AddRule(&nftables.Rule{Table: table, Chain: c.Chain, Exprs: r.exprs, UserData: userData(r.comment)})
		}
	}
	return d.nft.Flush()
}
