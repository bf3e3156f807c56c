package tunnel_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/weft-net/weft/tunnel"
)

// The pair is from RFC 7748, section 6.1 (Alice).
const (
	aliceSecret = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
	alicePublic = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
)

func TestKeys(t *testing.T) {
	secret, err := tunnel.ParseSecretKey(aliceSecret)
	if err != nil {
		t.Fatal(err)
	}
	if got := secret.Public().String(); got != alicePublic {
		t.Errorf("public key is %s, want %s", got, alicePublic)
	}
	if secret.Text() != aliceSecret {
		t.Error("Text does not give back what was parsed")
	}
	for _, bad := range []string{"", "AA==", aliceSecret[:43], aliceSecret + "=", strings.Repeat("A", 43) + "=", " " + aliceSecret, aliceSecret[:42] + "p="} {
		if _, err := tunnel.ParsePublicKey(bad); err == nil {
			t.Errorf("ParsePublicKey(%q): no error", bad)
		}
		if _, err := tunnel.ParseSecretKey(bad); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("ParseSecretKey(%q): %v", bad, err)
		}
	}
}

// TestSecretKeyDoesNotPrint holds that a secret does not slip into a log, an
// error or a document.
func TestSecretKeyDoesNotPrint(t *testing.T) {
	secret, err := tunnel.ParseSecretKey(aliceSecret)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", secret, "in", struct{ K tunnel.SecretKey }{secret})
	holder := struct{ Key tunnel.SecretKey }{secret}
	printed := log.String() + fmt.Sprintf("%v %+v %#v %s %x %q %d %v %x", secret, secret, secret, secret, secret, secret, secret, holder, &holder)
	if _, err := json.Marshal(holder); err == nil {
		t.Error("a secret was marshalled")
	}
	for _, leak := range []string{aliceSecret, "7707", "119 7", "0x77, 0x7"} {
		if strings.Contains(printed, leak) {
			t.Errorf("printed %s", printed)
		}
	}
}
