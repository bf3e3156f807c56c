//go:build e2e

package differential

const packets = allPackets
