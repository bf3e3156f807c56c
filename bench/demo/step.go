package demo

import (
	"errors"
	"fmt"
	"strings"
)

// labDir is where Open puts the namespaces of hosts and pods, one directory
// each. It is seen from elsewhere as /proc/PID/root/run/weft-lab.
const labDir = "/run/weft-lab"

// Open lets other processes of this user step into hosts and pods, by Step,
// for as long as the demo is up.
func (d *Demo) Open() error {
	for _, m := range d.members {
		if err := publish(m.Namespace, m.Name()); err != nil {
			return err
		}
		for _, pod := range m.pods {
			if err := publish(pod.ns, pod.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Place is where Step goes.
type Place struct {
	// Lab is a process of the lab, by its id out here; 0: the only lab there is.
	Lab int
	// Name is HOST or HOST/POD.
	Name string
}

var errNoOpenLab = errors.New("no lab is open here; open one with: weft-lab demo --keep")

// check keeps the name inside the lab's directory.
func (p Place) check() error {
	host, pod, isPod := strings.Cut(p.Name, "/")
	for _, part := range []string{host, pod} {
		if part == "." || part == ".." || strings.Contains(part, "/") || part == "" && (isPod || part == host) {
			return fmt.Errorf("step into %q: want HOST or HOST/POD, as in kernel1/a", p.Name)
		}
	}
	return nil
}
