//go:build !linux

package router

import (
	"fmt"
	"net"
	"strings"
)

// find looks a link up by its name.
func find(link string) (device net.Interface, found bool, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return device, false, fmt.Errorf("list links: %w", err)
	}
	for _, i := range all {
		if strings.EqualFold(i.Name, link) { // Windows keeps no names apart by case
			return i, true, nil
		}
	}
	return device, false, nil
}
