import {
  AppError,
  type CreateEnvironmentBody,
  type Environment,
  LIMITS,
  patchMetadata,
  resolveCloudConfig,
  sameJson,
  type UpdateEnvironmentBody,
} from '@holdfast/contracts';

function configOf(param: CreateEnvironmentBody['config'], before?: Environment['config']): Environment['config'] {
  const type = param?.type ?? before?.type ?? 'cloud';
  if (before !== undefined && before.type !== type) {
    throw new AppError('invalid', 'environment.config-type', 'config.type cannot be changed.', {
      details: { errorCode: 'invalid_config_type_change' },
    });
  }
  if (type === 'self_hosted') return { type };
  return resolveCloudConfig(param?.type === 'cloud' ? param : undefined, before?.type === 'cloud' ? before : undefined);
}

export function createEnvironment(id: string, body: CreateEnvironmentBody, at: string): Environment {
  return {
    id,
    type: 'environment',
    name: body.name,
    description: body.description ?? null,
    scope: 'organization',
    metadata: body.metadata ?? {},
    config: configOf(body.config),
    created_at: at,
    updated_at: at,
    archived_at: null,
  };
}

/** The changed environment, or the same object when nothing changes. @throws AppError `environment.archived`, `environment.config-type`. */
export function updateEnvironment(environment: Environment, body: UpdateEnvironmentBody, at: string): Environment {
  if (environment.archived_at !== null) {
    throw new AppError('invalid', 'environment.archived', `The environment ${environment.id} is archived.`, {
      details: { errorCode: 'environment_archived' },
    });
  }
  // Here, unlike elsewhere, an empty text deletes as well.
  const patch = Object.entries(body.metadata ?? {}).map(([key, value]) => [key, value === '' ? null : value] as const);
  const metadata = patchMetadata(environment.metadata, Object.fromEntries(patch));
  if (Object.keys(metadata).length > LIMITS.metadataPairs) {
    throw new AppError('invalid', 'environment.metadata', `metadata must have at most ${LIMITS.metadataPairs} pairs.`, {
      details: { errorCode: 'invalid_metadata' },
    });
  }
  const changed: Environment = {
    ...environment,
    ...(body.name == null ? {} : { name: body.name }),
    ...(body.description === undefined ? {} : { description: body.description ?? null }),
    config: configOf(body.config, environment.config),
    metadata,
  };
  return sameJson(changed, environment) ? environment : { ...changed, updated_at: at };
}
