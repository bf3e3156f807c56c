package control

import "net/netip"

// Service is a Kubernetes Service as far as a host without kube-proxy needs it:
// what to dial in place of a ClusterIP. It is immutable once delivered.
type Service struct {
	Namespace, Name string
	ClusterIPs      []netip.Addr // at least one, at most one per family
	Ports           []ServicePort
}

// ServicePort is one port of a Service and the endpoints that take traffic now.
type ServicePort struct {
	Name     string // empty where the Service has one port only
	Protocol string // "tcp" or "udp"
	Port     uint16 // of the ClusterIPs
	// Backends are sorted, without doubles, and of either family: a ClusterIP
	// goes with those of its own. Empty: nobody is there to answer.
	Backends []netip.AddrPort
}
