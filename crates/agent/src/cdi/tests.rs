//! Files good and bad, folders, and what follows for a container.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// As NVIDIA's tools write it, shortened.
const NVIDIA: &str = r#"---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
              permissions: rw
    - name: GPU-8f2a
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
              permissions: rw
    - name: "1"
      annotations: {slot: "4"}
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia1
              hostPath: /dev/char/195:1
              fileMode: 0660
              gid: 44
    - name: all
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
            - path: /dev/nvidia1
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void
    deviceNodes:
        - path: /dev/nvidiactl
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-cdi-hook
          args: [nvidia-cdi-hook, update-ldcache]
    mounts:
        - hostPath: /usr/lib/libcuda.so.1
          containerPath: /usr/lib/libcuda.so.1
          options: [ro, nosuid, nodev, bind]
"#;

#[test]
fn what_makers_write() {
    let spec = read_text(NVIDIA, false).unwrap();
    assert_eq!(spec.kind, "nvidia.com/gpu");
    assert_eq!(spec.devices.keys().collect::<Vec<_>>(), ["0", "1"], "one device has one name");
    let one = &spec.devices["1"].nodes[0];
    assert_eq!((one.path.as_str(), one.host_path.as_str()), ("/dev/nvidia1", "/dev/char/195:1"));
    assert_eq!((one.mode, one.gid, one.uid), (Some(0o660), Some(44), None));
    assert!(one.read && one.write);
    assert!(spec.common.mounts[0].read_only);
    let left_out: Vec<&str> = spec.left_out.into_iter().collect();
    assert_eq!(left_out, ["hooks, which are not run"]);
}

/// The fields of a device of a file that is else good.
#[track_caller]
fn check(device: &str, expected: &str) {
    let text = format!(
        r#"{{"cdiVersion": "1.0.0", "kind": "a.b/c", "devices": [{{"name": "x", {device}}}]}}"#
    );
    let got = read_text(&text, true).map(|_| "ok".to_owned());
    assert_eq!(got.unwrap_or_else(|problem| problem), expected, "{text}");
}

#[test]
fn what_is_wrong_is_named() {
    let edits = |edits: &str| format!(r#""containerEdits": {{{edits}}}"#);
    check(&edits(""), "ok");
    check(&edits(r#""env": ["A=1"], "additionalGIDs": [7], "intelRdt": {}"#), "ok");
    check(
        &edits(r#""env": ["=1"]"#),
        "devices[0].containerEdits.env: \"=1\" is not of the form KEY=value",
    );
    check(
        &edits(r#""deviceNodes": [{"path": "/sys/x"}]"#),
        "devices[0].containerEdits.deviceNodes[0].path: \"/sys/x\" is not in /dev",
    );
    check(
        &edits(r#""deviceNodes": [{"path": "/dev/../x"}]"#),
        "devices[0].containerEdits.deviceNodes[0].path: \"/dev/../x\" is not an absolute path \
         without \"..\"",
    );
    check(
        &edits(r#""deviceNodes": [{}]"#),
        "devices[0].containerEdits.deviceNodes[0].path: is missing",
    );
    check(
        &edits(r#""deviceNodes": [{"path": "/dev/x", "permissions": "rx"}]"#),
        "devices[0].containerEdits.deviceNodes[0].permissions: \"rx\" is not of r, w and m",
    );
    check(
        &edits(r#""deviceNodes": [{"path": "/dev/x", "fileMode": 4095}]"#),
        "devices[0].containerEdits.deviceNodes[0].fileMode: 4095 is not a number from 0 to 511",
    );
    check(
        &edits(r#""mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "tmpfs"}]"#),
        "devices[0].containerEdits.mounts[0].type: \"tmpfs\" is not \"bind\"",
    );
    check(&edits(r#""mounts": {}"#), "devices[0].containerEdits.mounts: is no list");
    check(&edits(r#""devicenodes": []"#), "devices[0].containerEdits.devicenodes: is not known");
    check(r#""nam": 1"#, "devices[0].nam: is not known");
    let read = |text: &str| read_text(text, true).unwrap_err();
    assert_eq!(read("[]"), "is no mapping");
    assert!(read("{").contains("EOF"));
    assert_eq!(
        read(r#"{"cdiVersion": "2.0.0"}"#),
        "cdiVersion: \"2.0.0\" is not known, 0.3.0 to 1.0.0 are"
    );
    assert_eq!(read(r#"{"cdiVersion": 1}"#), "cdiVersion: 1 is no text; write it in quotes");
    assert!(read(r#"{"cdiVersion": "0.3.0", "kind": "gpu"}"#).starts_with("kind: \"gpu\" is not"));
    let twice = r#"{"cdiVersion": "0.3.0", "kind": "a/b", "devices": [
        {"name": "x", "containerEdits": {"env": ["A=1"]}},
        {"name": "x", "containerEdits": {"env": ["A=2"]}}]}"#;
    assert_eq!(read(twice), "devices[1].name: \"x\" is there twice");
}

fn one(name: &str, env: &str) -> String {
    format!(
        "cdiVersion: 0.6.0\nkind: v.d/x\ncontainerEdits: {{env: [C=1]}}\ndevices:\n- name: {name}\n  \
         containerEdits:\n    env: [\"{env}\"]\n"
    )
}

#[test]
fn folders() {
    let dir = tempfile::tempdir().unwrap();
    let [low, high, none] = ["low", "high", "none"].map(|name| dir.path().join(name));
    fs::create_dir(&low).unwrap();
    fs::create_dir(&high).unwrap();
    fs::write(low.join("a.yaml"), one("a", "N=low")).unwrap();
    fs::write(low.join("b.yaml"), one("b", "N=b")).unwrap();
    fs::write(low.join("notes.txt"), "not for us").unwrap();
    fs::write(high.join("a.yaml"), one("a", "N=high")).unwrap();
    fs::write(high.join("broken.json"), "{").unwrap();
    fs::write(high.join("c1.yaml"), one("c", "N=1")).unwrap();
    fs::write(high.join("c2.yaml"), one("c", "N=2")).unwrap();
    fs::create_dir(high.join("folder.json")).unwrap();
    fs::write(high.join("large.json"), " ".repeat((1 << 20) + 1)).unwrap();
    let (found, problems) = known(&[low.clone(), high.clone(), none.clone()]);
    assert_eq!(found.devices.keys().collect::<Vec<_>>(), ["v.d/x=a", "v.d/x=b"]);
    let words: Vec<String> =
        problems.iter().map(|text| text.replace(&format!("{}/", high.display()), "")).collect();
    assert_eq!(
        words,
        [
            "broken.json: EOF while parsing an object at line 1 column 1",
            "c2.yaml: v.d/x=c is named by another file too: neither counts",
            "folder.json: is no file",
            "large.json: is larger than 1048576 bytes",
        ]
    );
    let devices = Devices::new(vec![low, high, none]);
    let edits = devices.edits(["v.d/x=a", "v.d/x=b"]).unwrap();
    // What a file's devices have in common is done once for each file.
    assert_eq!(edits.env, ["N=high", "N=b", "C=1", "C=1"]);
    assert_eq!(
        devices.edits(["v.d/x=c"]).unwrap_err(),
        "device v.d/x=c is not on this node: no specification names it"
    );
}

#[tokio::test]
async fn changes_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    // Neither the folder nor the one above is there yet.
    let folder = dir.path().join("run/cdi");
    let devices = Arc::new(Devices::new(vec![folder.clone()]));
    let mut names = devices.names();
    let following = tokio::spawn(Arc::clone(&devices).follow());
    let mut seen = async |expected: &str| {
        let is = |names: &Arc<Names>| {
            let all: Vec<&str> = names.values().flatten().map(String::as_str).collect();
            all.join(" ") == expected
        };
        tokio::time::timeout(Duration::from_secs(20), names.wait_for(is)).await.unwrap().unwrap();
    };
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("a.yaml"), one("a", "N=1")).unwrap();
    seen("a").await;
    fs::write(folder.join("b.tmp"), one("b", "N=1")).unwrap();
    fs::rename(folder.join("b.tmp"), folder.join("b.yaml")).unwrap();
    seen("a b").await;
    fs::remove_file(folder.join("a.yaml")).unwrap();
    seen("b").await;
    fs::remove_dir_all(&folder).unwrap();
    seen("").await;
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("c.yaml"), one("c", "N=1")).unwrap();
    seen("c").await;
    following.abort();
}

proptest! {
    /// Whatever a file says, it is read or refused.
    #[test]
    fn nothing_panics(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), "[-a-z0:\"'\\[{}#\n ]{0,3}"), 0..6),
    ) {
        let mut text = NVIDIA.to_owned();
        for (at, put) in cuts {
            let at = at.index(text.len());
            text.replace_range(at..(at + 2).min(text.len()), &put);
        }
        let _ = read_text(&text, false);
        let _ = read_text(&text, true);
    }
}
