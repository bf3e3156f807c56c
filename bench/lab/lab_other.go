//go:build !linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"syscall"
)

var errNoLab = fmt.Errorf("the lab needs Linux namespaces: %w", errors.ErrUnsupported)

func enter() error { return errNoLab }

type handles struct{}

func newHandles(string) (handles, error)      { return handles{}, errNoLab }
func (handles) inner(string) (handles, error) { return handles{}, errNoLab }
func (handles) adopt(string) (handles, error) { return handles{}, errNoLab }
func (handles) do(func() error) error         { return errNoLab }
func (handles) release() error                { return nil }
func (handles) command(context.Context, string, ...string) *exec.Cmd {
	return &exec.Cmd{Err: errNoLab}
}

func prepareOutside() error                       { return errNoLab }
func prepareHost() error                          { return errNoLab }
func addBridge(string, int, []netip.Prefix) error { return errNoLab }
func addDefaultRoutes(string, []netip.Addr) error { return errNoLab }
func (*cable) plug(int) error                     { return errNoLab }
func (*cable) set(LinkProps) error                { return errNoLab }
func (*Host) cross(*Host, CrossConfig) error      { return errNoLab }

func setCongestionControl() error                    { return errNoLab }
func setDontFragment(syscall.Conn, netip.Addr) error { return errNoLab }
func useCubic(syscall.Conn) error                    { return errNoLab }

func dumpLinks() ([]dumpLine, error)         { return nil, errNoLab }
func dumpAddrs() ([]dumpLine, error)         { return nil, errNoLab }
func dumpRoutes() ([]dumpLine, error)        { return nil, errNoLab }
func dumpNeigh() ([]dumpLine, error)         { return nil, errNoLab }
func dumpFDB() ([]dumpLine, error)           { return nil, errNoLab }
func dumpNFT() (string, error)               { return "", errNoLab }
func deviceMACs() (map[string]string, error) { return nil, errNoLab }
