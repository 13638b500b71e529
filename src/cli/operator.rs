//! The operator's name for the operator audit.

use rustix::process::getuid;

/// The name of the user that runs this process; with `sudo`, `ann as root`. `uid 1000` for a user that is not in
/// `/etc/passwd`, as in many containers.
pub(crate) fn current_actor(sudo: Option<&str>) -> String {
    let uid = getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    format_actor(&passwd, uid, sudo)
}

fn format_actor(passwd: &str, uid: u32, sudo: Option<&str>) -> String {
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then_some(name)
    });
    let name = name.map_or_else(|| format!("uid {uid}"), str::to_owned);
    match sudo {
        Some(person) if uid == 0 && !person.is_empty() && person != name => {
            format!("{person} as {name}")
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_is_named_also_behind_sudo() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(format_actor(passwd, 1000, None), "ann");
        assert_eq!(format_actor(passwd, 0, Some("ann")), "ann as root");
        assert_eq!(format_actor(passwd, 0, Some("root")), "root");
        assert_eq!(format_actor(passwd, 1000, Some("bob")), "ann", "a leftover");
        assert_eq!(format_actor(passwd, 7, None), "uid 7");
    }
}
