package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/watch"
)

// Driver makes tunnel.Firewall objects true in the network namespace it was
// opened in. It may be used from several goroutines.
type Driver struct {
	log     *slog.Logger
	watcher *watch.Watcher

	mu  sync.Mutex // a transaction is built up in nft
	nft *nftables.Conn
}

// Open opens a Driver. It changes nothing. The error says what is missing
// where the kernel or the rights do not suffice.
func Open(config Config) (*Driver, error) {
	nft, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open firewall driver: %w", explain(err))
	}
	d := &Driver{log: config.Logger, nft: nft}
	if _, err := nft.ListTablesOfFamily(nftables.TableFamilyIPv4); err != nil {
		if errors.Is(err, unix.EINVAL) { // what a missing subsystem answers
			err = errors.Join(err, unix.EOPNOTSUPP)
		}
		return nil, errors.Join(fmt.Errorf("open firewall driver: %w", explain(err)), nft.CloseLasting())
	}
	d.watcher, err = watch.Open(watch.Config{
		Protocol: unix.NETLINK_NETFILTER,
		Groups:   []uint32{unix.NFNLGRP_NFTABLES},
		Relevant: relevant,
		Logger:   config.Logger,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open firewall driver: %w", explain(err)), nft.CloseLasting())
	}
	return d, nil
}

// relevant lets through what happens to a table of our name.
func relevant(message syscall.NetlinkMessage) bool {
	const header = 4 // struct nfgenmsg
	kind := message.Header.Type & 0xff
	if message.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || kind == unix.NFT_MSG_NEWGEN || len(message.Data) < header {
		return false
	}
	// The table's name is attribute 1 of every kind of message.
	name, ok := watch.Attribute(message.Data[header:], unix.NFTA_TABLE_NAME)
	return ok && unix.ByteSliceToString(name) == Table
}

// Close stops listening for changes. It leaves the tables in place.
func (d *Driver) Close() error {
	err := d.watcher.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(err, d.nft.CloseLasting())
}

// Changes has a token when a table of ours may have changed, whoever
// did it. It is never closed.
func (d *Driver) Changes() <-chan struct{} { return d.watcher.Tokens() }

// Apply replaces the family's table as a whole, in one transaction.
func (d *Driver) Apply(ctx context.Context, want tunnel.Object) error {
	fw, ok := want.(tunnel.Firewall)
	if !ok {
		return fmt.Errorf("apply %s: the firewall driver makes no %T: %w", want.Key(), want, errors.ErrUnsupported)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := check(fw); err != nil {
		return fmt.Errorf("apply %s: %w", want.Key(), err)
	}
	if err := d.replace(fw); err != nil {
		return fmt.Errorf("apply %s: %w", want.Key(), explain(err))
	}
	return nil
}

// Delete removes the family's table. That it is not there is no error.
func (d *Driver) Delete(ctx context.Context, have tunnel.Object) error {
	fw, ok := have.(tunnel.Firewall)
	if !ok {
		return fmt.Errorf("delete %s: the firewall driver makes no %T: %w", have.Key(), have, errors.ErrUnsupported)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	table := familyOf(fw).table()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nft.AddTable(table) // so that there is one to delete
	d.nft.DelTable(table)
	if err := d.nft.Flush(); err != nil {
		return fmt.Errorf("delete %s: %w", have.Key(), explain(err))
	}
	return nil
}

// explain adds the cure to what a kernel or container refuses.
func explain(err error) error {
	for _, known := range []struct {
		errno error
		cure  string
	}{
		{unix.EPERM, "needs CAP_NET_ADMIN in this network namespace"},
		{unix.EPROTONOSUPPORT, "this kernel has no nftables: load the module (modprobe nf_tables)"},
		{unix.EOPNOTSUPP, "this kernel has no nftables: load the module (modprobe nf_tables)"},
		{unix.ENOENT, "this kernel lacks a part of nftables: load the modules (modprobe -a nft_chain_nat nft_masq)"},
	} {
		if errors.Is(err, known.errno) {
			return fmt.Errorf("%w: %s", err, known.cure)
		}
	}
	return err
}
