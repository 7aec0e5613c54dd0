//! An image in CRI's words.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::image::{Image, ImageUser, Images, Principal};
use crate::proto::cri;

/// For lists and statuses. A size of zero is taken for an error by kubelets, so the least is one byte.
pub fn describe(image: &Image) -> cri::Image {
    let (uid, username) = user(&image.config.user);
    cri::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes.max(1),
        uid,
        username,
        spec: Some(cri::ImageSpec { image: image.id.clone(), ..Default::default() }),
        pinned: image.pinned,
    }
}

/// What runAsNonRoot is judged by: a number if the image has one, else a name; an image without USER runs as root.
fn user(user: &ImageUser) -> (Option<cri::Int64Value>, String) {
    match &user.user {
        Some(Principal::Id(id)) => (Some(cri::Int64Value { value: i64::from(*id) }), String::new()),
        Some(Principal::Name(name)) => (None, name.clone()),
        None => (None, String::new()),
    }
}

/// The images that a list's filter lets through.
pub fn filtered(images: &Images, filter: Option<&cri::ImageFilter>) -> Vec<cri::Image> {
    let wanted = filter.and_then(|filter| filter.image.as_ref()).map_or("", |spec| spec.image.as_str());
    let found: Vec<Arc<Image>> =
        if wanted.is_empty() { images.list() } else { images.find(wanted).into_iter().collect() };
    found.iter().map(|image| describe(image)).collect()
}

/// The verbose part of ImageStatus, in the shape of an OCI image configuration.
pub fn info(image: &Image) -> Value {
    let config = &image.config;
    let volumes: BTreeMap<&str, Value> = config.volumes.iter().map(|path| (path.as_str(), json!({}))).collect();
    json!({
        "imageSpec": {
            "created": config.created,
            "architecture": config.architecture,
            "os": config.os,
            "config": {
                "User": user_text(&config.user),
                "Env": config.env,
                "Entrypoint": config.entrypoint,
                "Cmd": config.command,
                "WorkingDir": config.working_dir,
                "Volumes": volumes,
                "StopSignal": config.stop_signal,
                "Labels": config.labels,
            },
            "rootfs": { "type": "layers", "diff_ids": image.layers },
        },
    })
}

fn user_text(user: &ImageUser) -> String {
    let text = |principal: &Option<Principal>| match principal {
        Some(Principal::Id(id)) => id.to_string(),
        Some(Principal::Name(name)) => name.clone(),
        None => String::new(),
    };
    match &user.group {
        Some(_) => format!("{}:{}", text(&user.user), text(&user.group)),
        None => text(&user.user),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(user: ImageUser) -> Image {
        let config = crate::image::ImageConfig { user, volumes: vec!["/data".to_owned()], ..Default::default() };
        Image {
            id: "sha256:1".to_owned(),
            repo_tags: vec!["r.example/a:1".to_owned()],
            repo_digests: Vec::new(),
            size_bytes: 0,
            pinned: false,
            config,
            layers: Vec::new(),
        }
    }

    #[test]
    fn the_user_is_a_number_or_a_name() {
        let cases = [
            (None, None, ""),
            (Some(Principal::Id(1002)), Some(1002), ""),
            (Some(Principal::Id(0)), Some(0), ""),
            (Some(Principal::Name("www-data".to_owned())), None, "www-data"),
        ];
        for (user, uid, username) in cases {
            let described = describe(&image(ImageUser { user, group: Some(Principal::Id(7)) }));
            assert_eq!(described.uid.map(|value| value.value), uid);
            assert_eq!(described.username, username);
            assert_eq!(described.size, 1);
        }
    }

    #[test]
    fn the_verbose_part_has_the_shape_of_an_oci_configuration() {
        let user = ImageUser { user: Some(Principal::Id(1)), group: Some(Principal::Name("g".to_owned())) };
        let info = info(&image(user));
        assert_eq!(info["imageSpec"]["config"]["User"], "1:g");
        assert_eq!(info["imageSpec"]["config"]["Volumes"]["/data"], json!({}));
    }
}
