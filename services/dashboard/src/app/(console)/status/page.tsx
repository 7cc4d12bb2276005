import { StatusPage } from '../../../components/status-page.tsx';

export const metadata = { title: 'Status' };

export default function Page() {
  return <StatusPage />;
}
