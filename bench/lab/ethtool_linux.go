package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of the SIOCETHTOOL ioctl (linux/ethtool.h).
const (
	ethtoolGStrings   = 0x1b
	ethtoolGSSetInfo  = 0x37
	ethtoolSFeatures  = 0x3b
	ethtoolFeatureSet = 4 // ETH_SS_FEATURES
	ethtoolNameLen    = 32
)

// Features by their kernel names.
var (
	segmentationFeatures = []string{
		"tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation",
		"tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-generic-segmentation",
	}
	checksumFeatures = []string{"tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6"}
	coalesceFeatures = []string{"rx-gro"}
)

// setOffload switches the features of a device of the calling thread's
// namespace. Those that the kernel does not have are passed over.
func setOffload(device string, offload Offload, coalesce bool) error {
	names, err := featureNames(device)
	if err != nil {
		return err
	}
	want := map[string]bool{}
	for _, name := range segmentationFeatures {
		want[name] = offload == OffloadFull
	}
	for _, name := range checksumFeatures {
		want[name] = offload != OffloadNone
	}
	for _, name := range coalesceFeatures {
		want[name] = coalesce
	}
	return setFeatures(device, names, want)
}

// featureNames returns the names of the kernel's features by their numbers.
func featureNames(device string) ([]string, error) {
	info := make([]byte, 20) // struct ethtool_sset_info with one count
	binary.NativeEndian.PutUint32(info, ethtoolGSSetInfo)
	binary.NativeEndian.PutUint64(info[8:], 1<<ethtoolFeatureSet)
	if err := ethtool(device, info); err != nil {
		return nil, fmt.Errorf("count features: %w", err)
	}
	count := int(binary.NativeEndian.Uint32(info[16:]))
	list := make([]byte, 12+count*ethtoolNameLen) // struct ethtool_gstrings
	binary.NativeEndian.PutUint32(list, ethtoolGStrings)
	binary.NativeEndian.PutUint32(list[4:], ethtoolFeatureSet)
	binary.NativeEndian.PutUint32(list[8:], uint32(count))
	if err := ethtool(device, list); err != nil {
		return nil, fmt.Errorf("list features: %w", err)
	}
	var names []string
	for name := range slices.Chunk(list[12:], ethtoolNameLen) {
		names = append(names, string(bytes.TrimRight(name, "\x00")))
	}
	return names, nil
}

func setFeatures(device string, names []string, want map[string]bool) error {
	blocks := (len(names) + 31) / 32
	request := make([]byte, 8+blocks*8) // struct ethtool_sfeatures: pairs of valid, requested
	binary.NativeEndian.PutUint32(request, ethtoolSFeatures)
	binary.NativeEndian.PutUint32(request[4:], uint32(blocks))
	set := func(number, word int) {
		at := request[8+number/32*8+word*4:]
		binary.NativeEndian.PutUint32(at, binary.NativeEndian.Uint32(at)|1<<(number%32))
	}
	for number, name := range names {
		on, ok := want[name]
		if !ok {
			continue
		}
		set(number, 0)
		if on {
			set(number, 1)
		}
	}
	if err := ethtool(device, request); err != nil {
		return fmt.Errorf("set features: %w", err)
	}
	return nil
}

// ethtool makes the ioctl with a request that the kernel may overwrite.
func ethtool(device string, request []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifreq := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the kernel's union is larger than the pointer
	}{data: unsafe.Pointer(&request[0])}
	copy(ifreq.name[:unix.IFNAMSIZ-1], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	if errno != 0 {
		return errno
	}
	return nil
}
