//! The results as a safetensors file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use safetensors::tensor::{Dtype, TensorView};

use crate::check::Computed;

/// Refuses, before anything is computed, a path that no new file can take.
pub fn check_path(path: &Path) -> Result<()> {
    let name = path.display();
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        bail!("--save {name}: expected a file to write, given something else that exists");
    }
    let Some(file_name) = path.file_name() else { bail!("--save {name}: expected a file name") };
    let folder = folder_of(path);
    if !folder.is_dir() {
        let file_name = file_name.display();
        bail!("--save {name}: expected a folder to hold {file_name}, {} is none", folder.display());
    }
    Ok(())
}

/// Writes the results beside `path`, and moves them there once they are whole.
pub fn save(computed: &Computed, path: &Path, token_shape: &[usize]) -> Result<()> {
    let bytes = |values: &[f32]| -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    };
    let by_expert = computed.by_expert().to_vec();
    let (output, logits, weights) =
        (bytes(&computed.output), bytes(&computed.router_logits), bytes(&computed.combine_weights));
    let tensors = [
        ("output", TensorView::new(Dtype::F32, token_shape.to_vec(), &output)?),
        ("router_logits", TensorView::new(Dtype::F32, by_expert.clone(), &logits)?),
        ("selected", TensorView::new(Dtype::U8, by_expert.clone(), &computed.selected)?),
        ("combine_weights", TensorView::new(Dtype::F32, by_expert, &weights)?),
    ];
    let file = safetensors::serialize(tensors, None)?;

    // What a link points to is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let partial = folder_of(&path).join(format!(".run_layer.{}.partial", std::process::id()));
    let written = fs::write(&partial, file).and_then(|()| fs::rename(&partial, &path));
    if written.is_err() {
        // Best effort: the error to report is the one before.
        let _ = fs::remove_file(&partial);
    }
    written.with_context(|| format!("--save {}", path.display()))
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}
