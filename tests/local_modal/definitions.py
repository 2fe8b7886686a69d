"""Definitions of functions, and the messages that describe them to clients and containers."""

from modal_proto import api_pb2

from .calls import App, Function

UNLIMITED = 1 << 40  # bytes of arguments and results in a message, so that no store for large ones is needed


def with_options(definition: api_pb2.Function, options: api_pb2.FunctionOptions) -> api_pb2.Function:
    """The definition after `Function.with_options`: resources are merged, other options are replaced."""
    changed = api_pb2.Function()
    changed.CopyFrom(definition)
    changed.resources.MergeFrom(options.resources)
    if options.HasField("retry_policy"):
        changed.retry_policy.CopyFrom(options.retry_policy)
    if options.HasField("timeout_secs"):
        changed.timeout_secs = options.timeout_secs
    if options.HasField("concurrency_limit"):
        changed.autoscaler_settings.max_containers = options.concurrency_limit
    if options.HasField("task_idle_timeout_secs"):
        changed.autoscaler_settings.scaledown_window = options.task_idle_timeout_secs
    if options.HasField("max_concurrent_inputs"):
        changed.max_concurrent_inputs = options.max_concurrent_inputs
    if options.replace_volume_mounts:
        del changed.volume_mounts[:]
        changed.volume_mounts.extend(options.volume_mounts)
    if options.replace_secret_ids:
        changed.secret_ids[:] = options.secret_ids
    return changed


def handle_metadata(function: Function) -> api_pb2.FunctionHandleMetadata:
    definition = function.definition
    return api_pb2.FunctionHandleMetadata(
        function_name=definition.function_name,
        function_type=definition.function_type,
        is_method=definition.is_method,
        definition_id=f"de-{function.function_id}",
        class_parameter_info=definition.class_parameter_info,
        method_handle_metadata={
            name: api_pb2.FunctionHandleMetadata(
                function_name=method.function_name,
                function_type=method.function_type,
                is_method=True,
                use_method_name=name,
                function_schema=method.function_schema,
                max_object_size_bytes=UNLIMITED,
                max_async_object_size_bytes=UNLIMITED,
                supported_input_formats=method.supported_input_formats,
                supported_output_formats=method.supported_output_formats,
                app_id=function.app.app_id,
                web_url=function.web_urls.get(name, ""),
            )
            for name, method in definition.method_definitions.items()
        },
        function_schema=definition.function_schema,
        max_object_size_bytes=UNLIMITED,
        max_async_object_size_bytes=UNLIMITED,
        supported_input_formats=definition.supported_input_formats,
        supported_output_formats=definition.supported_output_formats,
        app_id=function.app.app_id,
    )


def function_data(definition: api_pb2.Function) -> api_pb2.FunctionData:
    return api_pb2.FunctionData(
        module_name=definition.module_name,
        function_name=definition.function_name,
        function_type=definition.function_type,
        timeout_secs=definition.timeout_secs,
        is_class=definition.is_class,
        class_parameter_info=definition.class_parameter_info,
        method_definitions=definition.method_definitions,
        method_definitions_set=definition.method_definitions_set,
        function_schema=definition.function_schema,
        supported_input_formats=definition.supported_input_formats,
        supported_output_formats=definition.supported_output_formats,
        ranked_functions=[api_pb2.FunctionData.RankedFunction(rank=0, function=definition)],
    )


def container_arguments(
    function: Function,
    task_id: str,
    *,
    functions: dict[str, Function],
    volumes: dict[str, api_pb2.VolumeMetadata],
    exit_commits: bool,
) -> api_pb2.ContainerArguments:
    definition = api_pb2.Function()
    definition.CopyFrom(function.definition)
    for mount in definition.volume_mounts:
        mount.allow_background_commits = exit_commits  # the entrypoint commits when it exits
    return api_pb2.ContainerArguments(
        task_id=task_id,
        function_id=function.function_id,
        app_id=function.app.app_id,
        function_def=definition,
        serialized_params=function.params,
        environment_name="main",
        app_layout=_layout(function.app, functions, volumes),
    )


def _layout(app: App, functions: dict[str, Function], volumes: dict[str, api_pb2.VolumeMetadata]) -> api_pb2.AppLayout:
    """The functions and classes of the app, and every object that one of them depends on."""
    members = [functions[function_id] for function_id in app.function_ids.values()]
    dependencies = {dependency.object_id for member in members for dependency in member.definition.object_dependencies}
    objects = [
        api_pb2.Object(object_id=member.function_id, function_handle_metadata=handle_metadata(member))
        for member in members
    ]
    objects += [
        api_pb2.Object(object_id=class_id, class_handle_metadata=api_pb2.ClassHandleMetadata())
        for class_id in app.class_ids.values()
    ]
    for object_id in sorted(dependencies - {member.function_id for member in members}):
        if object_id in volumes:
            objects.append(api_pb2.Object(object_id=object_id, volume_metadata=volumes[object_id]))
        elif object_id.startswith("mo-"):
            objects.append(api_pb2.Object(object_id=object_id, mount_handle_metadata=api_pb2.MountHandleMetadata()))
        else:  # images and secrets have no metadata
            objects.append(api_pb2.Object(object_id=object_id))
    return api_pb2.AppLayout(objects=objects, function_ids=app.function_ids, class_ids=app.class_ids)
