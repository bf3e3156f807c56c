package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/kardianos/service"
)

// systemdUnit is like deploy/weft.service, in the words of the service library's
// templates, without the sandbox: this machine's administrator has said which
// flags there are, and so which rights are needed.
const systemdUnit = `# Made by 'weft service install'.
[Unit]
Description={{Description}}
Documentation=https://github.com/weft-net/weft
Wants=network-online.target
After=network-online.target

[Service]
# Ready once the peers are programmed; 'weft status' says what it waits for.
Type=notify
TimeoutStartSec=infinity
EnvironmentFile=-%E/weft/agent.env
ExecStart={{Path | cmdEscape}}{{range Arguments}} {{. | cmd}}{{end}}
Restart=always
RestartSec=2
# A process that holds a namespace with pods stays.
KillMode=process
RuntimeDirectory=weft
RuntimeDirectoryPreserve=yes
LimitCORE=0

[Install]
WantedBy=`

func completeService(config *service.Config, o serviceOptions) {
	target := "multi-user.target"
	if o.user {
		target = "default.target"
	}
	config.Option["SystemdScript"] = systemdUnit + target + "\n"
}

// serviceArgument writes an argument such that systemd, which expands some
// signs, gives the agent what was said (systemd.service(5), "Command lines").
func serviceArgument(argument string) (string, error) {
	if strings.ContainsAny(argument, "\n\r\x00") {
		return "", errors.New("a unit cannot hold line breaks")
	}
	return strings.NewReplacer(`\`, `\\`, `%`, `%%`, `$`, `$$`).Replace(argument), nil
}

func checkServiceRights(o serviceOptions) error {
	if platform := service.Platform(); platform != "linux-systemd" {
		return fmt.Errorf("services need systemd, and this system is started by %q: have that start 'weft agent'", platform)
	}
	return needsRoot(o, os.Geteuid())
}
