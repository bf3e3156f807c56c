// Package guard is the Linux driver for the packet filter: one nftables table
// of ours per inner family, with the masquerade and forward rules of the pod
// network. It must never read or change another table, and never leave its own
// empty or half filled for one packet.
package guard

import "log/slog"

// Table is the name of our table in each family.
const Table = "weft"

// Config configures a Driver.
type Config struct {
	Logger *slog.Logger
}
