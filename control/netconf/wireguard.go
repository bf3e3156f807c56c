package netconf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// wireGuardDocument is what of the Backend object concerns WireGuard, whatever
// the type. All keys but the first two are flannel's, which has them for the
// type wireguard only.
type wireGuardDocument struct {
	Prefer                      *[]string
	Encrypt                     *string
	ListenPort                  int64
	ListenPortV6                int64
	PersistentKeepaliveInterval int64
	PSK                         string
}

const maxKeepalive = 1<<16 - 1 // seconds, as the kernel has it

func (d wireGuardDocument) parse(backend *Backend) (err error) {
	if backend.ListenPorts[0], err = parsePort("Backend.ListenPort", d.ListenPort, DefaultListenPort); err != nil {
		return err
	}
	if backend.ListenPorts[1], err = parsePort("Backend.ListenPortV6", d.ListenPortV6, DefaultListenPortV6); err != nil {
		return err
	}
	if d.PersistentKeepaliveInterval < 0 || d.PersistentKeepaliveInterval > maxKeepalive {
		return fmt.Errorf("Backend.PersistentKeepaliveInterval is %d; allowed: 1 to %d seconds, or 0 for none", d.PersistentKeepaliveInterval, maxKeepalive)
	}
	backend.PersistentKeepalive = int(d.PersistentKeepaliveInterval)
	if d.PSK != "" {
		// A secret: the text is not repeated.
		if backend.PSK, err = tunnel.ParseSecretKey(d.PSK); err != nil {
			return fmt.Errorf("Backend.PSK: %w; allowed: what `wg genpsk` writes", err)
		}
	}
	if backend.Prefer, err = d.prefer(); err != nil {
		return err
	}
	backend.Encrypt, err = d.encrypt(backend.Prefer)
	return err
}

func (d wireGuardDocument) prefer() ([]tunnel.Encap, error) {
	if d.Prefer == nil {
		return nil, nil
	}
	allowed := []tunnel.Encap{tunnel.EncapDirect, tunnel.EncapVXLAN, tunnel.EncapWireGuard}
	const names = "direct, vxlan, wireguard"
	if len(*d.Prefer) == 0 {
		return nil, fmt.Errorf("Backend.Prefer is empty, so that no host could reach another; allowed: a list of %s, or leave it out", names)
	}
	var order []tunnel.Encap
	for _, text := range *d.Prefer {
		encap := tunnel.Encap(lowerASCII(text))
		if !slices.Contains(allowed, encap) {
			return nil, fmt.Errorf("Backend.Prefer has %q; allowed: %s", shorten(text), names)
		}
		if slices.Contains(order, encap) {
			return nil, fmt.Errorf("Backend.Prefer has %s twice; allowed: each once", encap)
		}
		order = append(order, encap)
	}
	return order, nil
}

// encrypt is guests where nothing is said, whatever Prefer is.
func (d wireGuardDocument) encrypt(prefer []tunnel.Encap) (control.Encrypt, error) {
	if d.Encrypt == nil {
		return control.EncryptGuests, nil
	}
	encrypt := control.Encrypt(lowerASCII(*d.Encrypt))
	if !slices.Contains([]control.Encrypt{control.EncryptNever, control.EncryptGuests, control.EncryptAlways}, encrypt) {
		return "", fmt.Errorf("Backend.Encrypt is %q; allowed: never, guests, always", shorten(*d.Encrypt))
	}
	if encrypt != control.EncryptNever && prefer != nil && !slices.Contains(prefer, tunnel.EncapWireGuard) {
		return "", fmt.Errorf("Backend.Encrypt is %s, and Backend.Prefer is %s and lacks wireguard; add it, or set Encrypt to never", encrypt, encaps(prefer))
	}
	return encrypt, nil
}

// contradiction says which of two keys would have to give way.
func (b Backend) contradiction(families []Family) error {
	is := func(want4 bool) bool {
		return slices.ContainsFunc(families, func(f Family) bool { return f.is4() == want4 })
	}
	on := [2]bool{is(true), is(false)}
	keys := [2]string{"Backend.ListenPort", "Backend.ListenPortV6"}
	for i, port := range b.ListenPorts {
		if on[i] && b.Type == VXLAN && port == b.Port {
			return fmt.Errorf("%s is %d, and so is Backend.Port; allowed: two different ports", keys[i], port)
		}
	}
	// Each family has a socket of its own, and that of IPv6 may take IPv4 too.
	if on[0] && on[1] && b.ListenPorts[0] == b.ListenPorts[1] {
		return fmt.Errorf("Backend.ListenPort and Backend.ListenPortV6 are both %d; allowed: two different ports", b.ListenPorts[0])
	}
	if b.Type == HostGW && b.Encrypt == control.EncryptAlways {
		return fmt.Errorf("Backend.Encrypt is always, and routes of Backend.Type host-gw carry everything in clear; set Type to %s or %s, or Encrypt to guests", VXLAN, WireGuard)
	}
	if b.Prefer == nil {
		return nil
	}
	has := func(encap tunnel.Encap) bool { return slices.Contains(b.Prefer, encap) }
	switch {
	case b.Type == WireGuard && len(b.Prefer) > 1, b.Type == WireGuard && !has(tunnel.EncapWireGuard):
		return fmt.Errorf("Backend.Prefer is %s, and Backend.Type wireguard carries everything by WireGuard; leave Prefer out, or set Type to %s", encaps(b.Prefer), VXLAN)
	case b.Type == HostGW && has(tunnel.EncapVXLAN):
		return fmt.Errorf("Backend.Prefer has vxlan, and hosts of Backend.Type host-gw have no VXLAN; take it out, or set Type to %s", VXLAN)
	case b.Type == HostGW && !has(tunnel.EncapDirect):
		return fmt.Errorf("Backend.Prefer is %s and lacks direct, which is all that Backend.Type host-gw means; add it, or set Type to %s", encaps(b.Prefer), WireGuard)
	case b.DirectRouting && !has(tunnel.EncapDirect):
		return fmt.Errorf("Backend.DirectRouting is true, and Backend.Prefer is %s and lacks direct; add it, or leave DirectRouting out", encaps(b.Prefer))
	}
	return nil
}

func encaps(list []tunnel.Encap) string {
	texts := make([]string, len(list))
	for i, encap := range list {
		texts[i] = string(encap)
	}
	return strings.Join(texts, ", ")
}
