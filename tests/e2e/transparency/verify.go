// Verifies the sealed audit log of a service with Go's own packages, from what it serves over HTTP.
//
// usage: verify BASE_URL API_KEY API_SECRET VERIFIER_KEY EARLIER_CHECKPOINT_FILE
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var base, key, secret = os.Args[1], os.Args[2], os.Args[3]

func fetch(path string) []byte {
	request, err := http.NewRequest("GET", base+path, nil)
	check(err)
	request.SetBasicAuth(key, secret)
	response, err := http.DefaultClient.Do(request)
	check(err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	check(err)
	if response.StatusCode != 200 {
		log.Fatalf("%s: %s", path, response.Status)
	}
	return body
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// openCheckpoint verifies the signature and returns the tree.
func openCheckpoint(text []byte, verifier note.Verifier) tlog.Tree {
	opened, err := note.Open(text, note.VerifierList(verifier))
	check(err)
	lines := strings.Split(opened.Text, "\n")
	if lines[0] != verifier.Name() {
		log.Fatalf("the origin is %q", lines[0])
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	hash, err := tlog.ParseHash(lines[2])
	check(err)
	return tlog.Tree{N: size, Hash: hash}
}

// tiles reads tiles of the log. Go's paths begin with the height, those of C2SP do not.
type tiles struct{}

func (tiles) Height() int                     { return 8 }
func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range wanted {
		all = append(all, fetch("/audit/log/"+strings.Replace(tile.Path(), "tile/8/", "tile/", 1)))
	}
	return all, nil
}

func main() {
	verifier, err := note.NewVerifier(os.Args[4])
	check(err)
	earlierText, err := os.ReadFile(os.Args[5])
	check(err)
	earlier := openCheckpoint(earlierText, verifier)
	tree := openCheckpoint(fetch("/audit/log/checkpoint"), verifier)
	hashes := tlog.TileHashReader(tree, tiles{})

	consistency, err := tlog.ProveTree(tree.N, earlier.N, hashes)
	check(err)
	check(tlog.CheckTree(consistency, tree.N, tree.Hash, earlier.N, earlier.Hash))

	checked := 0
	for n := int64(0); n*256 < tree.N; n++ {
		path := fmt.Sprintf("/audit/log/tile/entries/%03d", n)
		if width := tree.N - n*256; width < 256 {
			path += fmt.Sprintf(".p/%d", width)
		}
		bundle := fetch(path)
		for index := n * 256; len(bundle) > 0; index++ {
			length := 2 + int(binary.BigEndian.Uint16(bundle))
			entry := bundle[2:length]
			bundle = bundle[length:]
			inclusion, err := tlog.ProveRecord(tree.N, index, hashes)
			check(err)
			check(tlog.CheckRecord(inclusion, tree.N, tree.Hash, index, tlog.RecordHash(entry)))
			if index%97 == 0 {
				checkProof(entry, index, verifier)
			}
			checked++
		}
	}
	if int64(checked) != tree.N {
		log.Fatalf("%d entries in a tree of %d", checked, tree.N)
	}
	fmt.Printf("verified %d entries, and that they continue the first %d\n", checked, earlier.N)
}

// checkProof verifies the proof that the service returns for the event of an entry.
func checkProof(entry []byte, index int64, verifier note.Verifier) {
	var event struct{ ID string }
	check(json.Unmarshal(entry, &event))
	var proof struct {
		LeafIndex  int64
		Entry      string
		Proof      []string
		Checkpoint string
	}
	check(json.Unmarshal(fetch("/audit/events/"+event.ID+"/proof"), &proof))
	if proof.LeafIndex != index || !bytes.Equal([]byte(proof.Entry), entry) {
		log.Fatalf("the proof of %s is of another entry", event.ID)
	}
	var inclusion tlog.RecordProof
	for _, text := range proof.Proof {
		bytes, err := base64.StdEncoding.DecodeString(text)
		check(err)
		var hash tlog.Hash
		copy(hash[:], bytes)
		inclusion = append(inclusion, hash)
	}
	tree := openCheckpoint([]byte(proof.Checkpoint), verifier)
	check(tlog.CheckRecord(inclusion, tree.N, tree.Hash, index, tlog.RecordHash(entry)))
}
