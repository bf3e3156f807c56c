//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestKernelWireGuard runs the WireGuard tests of tunnel/kernel on Debian's
// kernel, in an emulated machine: not every machine's kernel has WireGuard.
func TestKernelWireGuard(t *testing.T) {
	dir := t.TempDir()
	tests := filepath.Join(dir, "kernel.test")
	source, err := filepath.Abs("../../tunnel/kernel")
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "test", "-c", "-tags", "e2e", "-o", tests, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build tests: %v: %s", err, out)
	}
	linux, err := findLinux(os.Getenv("WEFT_GUEST_LINUX"))
	if err != nil {
		t.Fatal(err)
	}
	initramfs := filepath.Join(dir, "initramfs")
	if err := linux.writeInitramfs(initramfs); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-machine", "q35,accel=tcg", "-cpu", "max", "-m", "1024", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", linux.kernel, "-initrd", initramfs,
		"-append", strings.Join([]string{"console=ttyS0", "quiet", "panic=-1", machineVar + "=" + tests, machineDirVar + "=" + source}, " "),
		"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=root,mount_tag="+rootTag,
	).CombinedOutput()
	if err != nil {
		t.Errorf("run machine: %v", err)
	}
	for _, want := range []string{"--- PASS: TestWireGuardKernelOverlay", "--- PASS: TestWireGuardDrift/kernel", machinePasses} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("no %q in what the machine prints", want)
		}
	}
	t.Logf("%s", out)
}

// guestLinux is a kernel and the modules that go with it.
type guestLinux struct {
	kernel  string
	modules string   // their directory
	needs   []string // modules in order of loading, relative to it
}

// machineNeeds are the modules that the machine and the tests need, without what
// they depend on: its root, the lab's links, and what is tested.
var machineNeeds = []string{
	"virtio_pci.ko", "9pnet_virtio.ko", "9p.ko",
	"tun.ko", "veth.ko", "bridge.ko", "vxlan.ko", "ifb.ko", "wireguard.ko",
}

// findLinux finds what linux.sh has unpacked, whatever its version.
func findLinux(dir string) (linux guestLinux, err error) {
	kernels, _ := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	lists, _ := filepath.Glob(filepath.Join(dir, "lib/modules/*/modules.dep"))
	if len(kernels) != 1 || len(lists) != 1 {
		return linux, fmt.Errorf("find a kernel in WEFT_GUEST_LINUX=%q: have %v and %v: run 'make e2e', or bench/e2e/linux.sh DIRECTORY", dir, kernels, lists)
	}
	linux = guestLinux{kernel: kernels[0], modules: filepath.Dir(lists[0])}
	needs, err := modulesFor(lists[0], machineNeeds)
	linux.needs = needs
	return linux, err
}

// modulesFor lists modules, each after what it depends on, as modules.dep says:
// a line is "PATH: WHAT IT NEEDS...", what is needed first last.
func modulesFor(list string, names []string) (order []string, err error) {
	text, err := os.ReadFile(list)
	if err != nil {
		return nil, err
	}
	chains := make(map[string][]string)
	for line := range strings.Lines(string(text)) {
		path, needs, _ := strings.Cut(line, ":")
		name, _, _ := strings.Cut(filepath.Base(path), ".")
		chains[name+".ko"] = append([]string{path}, strings.Fields(needs)...)
	}
	for _, name := range names {
		if chains[name] == nil {
			return nil, fmt.Errorf("no module %s in %s", name, list)
		}
		for _, path := range slices.Backward(chains[name]) {
			if !slices.Contains(order, path) {
				order = append(order, path)
			}
		}
	}
	return order, nil
}

// writeInitramfs writes this program as the init, and the modules by number.
func (l guestLinux) writeInitramfs(path string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	archive := []cpioFile{
		{name: "init", mode: 0o100755, data: self},
		{name: "dev", mode: 0o040755}, {name: "root", mode: 0o040755}, {name: "modules", mode: 0o040755},
	}
	for i, module := range l.needs {
		data, err := os.ReadFile(filepath.Join(l.modules, module))
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%s/%02d-%s", machineModules, i, filepath.Base(module))
		archive = append(archive, cpioFile{name: strings.TrimPrefix(name, "/"), mode: 0o100644, data: data})
	}
	var b bytes.Buffer
	for i, file := range append(archive, cpioFile{name: "TRAILER!!!"}) {
		file.append(&b, i+1)
	}
	return os.WriteFile(path, b.Bytes(), 0o600)
}

// cpioFile is a file in an archive that the kernel unpacks ("newc").
type cpioFile struct {
	name string
	mode uint32
	data []byte
}

func (f cpioFile) append(b *bytes.Buffer, inode int) {
	pad := func() { b.Write(make([]byte, -b.Len()&3)) }
	b.WriteString("070701")
	for _, field := range []int{inode, int(f.mode), 0, 0, 1, 0, len(f.data), 0, 0, 0, 0, len(f.name) + 1, 0} {
		fmt.Fprintf(b, "%08X", field)
	}
	b.WriteString(f.name + "\x00")
	pad()
	b.Write(f.data)
	pad()
}
