import { EnvironmentsPage } from '../../../components/environments-page.tsx';

export const metadata = { title: 'Environments' };

export default function Page() {
  return <EnvironmentsPage />;
}
