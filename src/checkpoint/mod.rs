//! Layers from safetensors and GGUF files and from checkpoint folders, memory-mapped.
//!
//! A checkpoint is one `.safetensors` or `.gguf` file, or a folder with `config.json` and either
//! `model.safetensors` or the shards that `model.safetensors.index.json` lists. Only the shards
//! that hold the layer's tensors are opened, and only the tensors that are read are paged in.

mod experts;
mod gguf;
mod layer;
mod quantised;
mod tensor;
mod view;

pub use layer::CheckpointLayer;
pub use tensor::StoredTensor;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::Deserialize;

use crate::config::{Family, ModelConfig};
use crate::error::{Error, Result};
use tensor::MappedFile;

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// An open checkpoint: the names of its tensors, and the files that hold them.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<LazyFile>,
    /// Name of each tensor, to the file that holds it.
    names: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct LazyFile {
    path: PathBuf,
    mapped: OnceLock<Arc<MappedFile>>,
}

/// What is read of a `model.safetensors.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file or a checkpoint folder.
    ///
    /// The files are mapped into memory. They must not be changed while the checkpoint, or a layer
    /// that was read from it and not yet prepared, is in use: weights would change under the
    /// reader, and a file that becomes shorter ends the process with SIGBUS.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] name the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let metadata = fs::metadata(path).map_err(|error| io_error(path, error))?;
        if !metadata.is_dir() {
            return Self::open_file(path, path);
        }
        if path.join(INDEX).exists() {
            return Self::open_shards(path);
        }
        if path.join(SINGLE).exists() {
            return Self::open_file(path, &path.join(SINGLE));
        }
        Err(Error::File {
            path: path.to_owned(),
            reason: format!("the folder holds neither {INDEX} nor {SINGLE}"),
        })
    }

    fn open_file(path: &Path, file: &Path) -> Result<Self> {
        let mapped = Arc::new(MappedFile::open(file)?);
        let names = mapped.names().map(|name| (name.to_owned(), 0)).collect();
        let file = LazyFile { path: file.to_owned(), mapped: OnceLock::from(mapped) };
        Ok(Self { path: path.to_owned(), files: vec![file], names })
    }

    fn open_shards(folder: &Path) -> Result<Self> {
        let index_path = folder.join(INDEX);
        let index: ShardIndex =
            serde_json::from_str(&read_text(&index_path)?).map_err(|error| Error::File {
                path: index_path.clone(),
                reason: format!("not a shard index: {error}"),
            })?;
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        // A shard is a file of the folder: an index must not reach outside it.
        if let Some(shard) = shards.iter().find(|shard| shard.contains(['/', '\\'])) {
            let reason = format!("shard \"{shard}\" is not a file name");
            return Err(Error::File { path: index_path, reason });
        }
        let numbers: HashMap<&String, usize> = shards.iter().copied().zip(0..).collect();
        let names =
            index.weight_map.iter().map(|(name, shard)| (name.clone(), numbers[shard])).collect();
        let files = shards
            .into_iter()
            .map(|shard| LazyFile { path: folder.join(shard), mapped: OnceLock::new() })
            .collect();
        Ok(Self { path: folder.to_owned(), files, names })
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of the `config.json` in the folder, or beside the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn config_json(&self) -> Result<String> {
        let folder = match self.path.is_dir() {
            true => &self.path,
            false => self.path.parent().unwrap_or(Path::new("")),
        };
        read_text(&folder.join(CONFIG))
    }

    /// The value of a metadata key in the header of a single file.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        match self.files.as_slice() {
            [file] => file.mapped.get()?.metadata(key),
            _ => None,
        }
    }

    /// What the file's own metadata or the `config.json` beside it says of the model; `ignored` as in
    /// [`MoeConfig::from_hf_config_ignoring`](crate::MoeConfig::from_hf_config_ignoring).
    ///
    /// # Errors
    /// [`Error::Io`], and as [`ModelConfig::parse`] and [`ModelConfig::from_gguf`].
    pub fn model(&self, ignored: &[&str]) -> Result<ModelConfig> {
        if let [file] = self.files.as_slice()
            && let Some(metadata) = file.mapped.get().and_then(|mapped| mapped.gguf())
        {
            return ModelConfig::from_gguf(metadata);
        }
        ModelConfig::parse(&self.config_json()?, ignored)
    }

    /// Names of all tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// The tensor `name`; `expected` says what it holds, in the error if there is none.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], and those of opening its file.
    pub fn tensor(&self, name: &str, expected: &str) -> Result<StoredTensor> {
        let missing = || Error::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
            expected: expected.to_owned(),
        };
        let file = &self.files[*self.names.get(name).ok_or_else(missing)?];
        let mapped = match file.mapped.get() {
            Some(mapped) => mapped,
            None => {
                let opened = Arc::new(MappedFile::open(&file.path)?);
                file.mapped.get_or_init(|| opened)
            }
        };
        StoredTensor::find(mapped, name).ok_or_else(missing)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// The layers that hold a router of `family`, in ascending order.
    pub fn moe_layers(&self, family: &Family) -> Vec<usize> {
        let names = &family.tensors;
        let mut layers = BTreeSet::new();
        for block in names.blocks {
            let tensor = format!("{block}{}", names.router.weight);
            let Some((prefix, suffix)) = tensor.split_once("{layer}") else { continue };
            let number = |name: &str| -> Option<usize> {
                name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()
            };
            layers.extend(self.names().filter_map(number));
        }
        layers.into_iter().collect()
    }

    /// The MoE layer `layer` of a model, with every shape and type checked; nothing is read yet.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], [`Error::DType`] and, for a tensor of the
    /// layer that the family's row does not name, [`Error::Unsupported`]: each names the tensor.
    pub fn layer(&self, model: &ModelConfig, layer: usize) -> Result<CheckpointLayer> {
        CheckpointLayer::find(self, model, layer)
    }
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| io_error(path, error))
}

fn io_error(path: &Path, error: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), error }
}
