//! What stops attempts, by name, and how each of it is switched off.

use vr_runner::container::{BindMount, Hardening, Network};

use super::scene::Scene;

/// Something that stops attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defence {
    // The fields of `Hardening`.
    UserNamespace,
    Seccomp,
    NoNewPrivileges,
    DropCapabilities,
    MaskKernelFiles,
    NewKeyring,
    CloseDescriptors,
    NoDevicesOrSetuid,
    LinksStayInside,
    ProcessNamespace,
    IpcNamespace,
    HostNameNamespace,
    CgroupNamespace,
    OwnProgramStaysOutside,
    // What cannot be switched off by a field, as a container would be none without it.
    /// What is not mounted is not there.
    OwnFiles,
    /// The root was changed for good, and not with `chroot`.
    OwnRoot,
    /// Only the variables that were asked for.
    OwnEnvironment,
    // What is asked for.
    /// Mounts are read-only.
    ReadOnly,
    /// A network of its own.
    OwnNetwork,
}

use Defence::*;

impl Defence {
    pub const ALL: [Self; 19] = [
        UserNamespace,
        Seccomp,
        NoNewPrivileges,
        DropCapabilities,
        MaskKernelFiles,
        NewKeyring,
        CloseDescriptors,
        NoDevicesOrSetuid,
        LinksStayInside,
        ProcessNamespace,
        IpcNamespace,
        HostNameNamespace,
        CgroupNamespace,
        OwnProgramStaysOutside,
        OwnFiles,
        OwnRoot,
        OwnEnvironment,
        ReadOnly,
        OwnNetwork,
    ];

    pub fn name(self) -> String {
        format!("{self:?}")
    }

    pub fn switch_off(self, scene: &mut Scene) {
        let Hardening {
            user_namespace,
            seccomp,
            no_new_privileges,
            drop_capabilities,
            mask_kernel_files,
            new_keyring,
            close_descriptors,
            no_devices_or_setuid,
            links_stay_inside,
            process_namespace,
            ipc_namespace,
            host_name_namespace,
            cgroup_namespace,
            own_program_stays_outside,
        } = &mut scene.spec.hardening;
        let field = match self {
            UserNamespace => user_namespace,
            Seccomp => seccomp,
            NoNewPrivileges => no_new_privileges,
            DropCapabilities => drop_capabilities,
            MaskKernelFiles => mask_kernel_files,
            NewKeyring => new_keyring,
            CloseDescriptors => close_descriptors,
            NoDevicesOrSetuid => no_devices_or_setuid,
            LinksStayInside => links_stay_inside,
            ProcessNamespace => process_namespace,
            IpcNamespace => ipc_namespace,
            HostNameNamespace => host_name_namespace,
            CgroupNamespace => cgroup_namespace,
            OwnProgramStaysOutside => own_program_stays_outside,
            OwnFiles => {
                let (source, target) = (scene.outside.clone(), scene.outside.clone());
                scene.spec.mounts.push(BindMount { source, target, read_only: true });
                return;
            }
            OwnRoot => {
                scene.plain_chroot = true;
                return;
            }
            OwnEnvironment => {
                let variables = &mut scene.spec.program.environment;
                variables.extend(std::env::vars_os());
                return;
            }
            ReadOnly => {
                scene.spec.read_only = false;
                for mount in &mut scene.spec.mounts {
                    mount.read_only = false;
                }
                return;
            }
            OwnNetwork => {
                scene.spec.network = Network::Host;
                return;
            }
        };
        *field = false;
    }
}
